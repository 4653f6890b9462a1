"""Embeddings of events, candidates and users, whichever way the graphs are given them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckv_export.contract import FEATURES, EventForm, FeatureSpec, ModelSpec
from ckv_export.model.embedding import FeatureEmbedding, frozen

Inputs = Mapping[str, Tensor]

_CHUNK = 4096


class Lookup(nn.Module):
    """A feature of every item: int32 or float32 [items, ...], a row per item id."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.inner = values.ndim > 1
        self.values = frozen(values if self.inner else values.unsqueeze(1))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids int32 [...] -> the feature [..., ...]."""
        found = F.embedding(ids, self.values)
        return found if self.inner else found.squeeze(-1)


class EventEmbedding(nn.Module):
    """Inputs named as `form` has them -> embeddings.

    `catalogue`: for a form with an item key, every other item feature's `Lookup` values.
    """

    def __init__(
        self,
        spec: ModelSpec,
        state: Mapping[str, Tensor],
        form: EventForm = FEATURES,
        catalogue: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.form = spec, form
        if form.embeddings == "external":
            return
        self.items = FeatureEmbedding(spec.embedded_item_features, state)
        self.users = FeatureEmbedding(spec.user_features, state)
        self.lookups = nn.ModuleDict(
            {
                _module_name(f): Lookup((catalogue or {})[f.name])
                for f in spec.embedded_item_features
                if not form.gives(f)
            }
        )

    def items_of(self, inputs: Inputs, prefix: str) -> Tensor:
        """Events or candidates called ``<prefix>_*``: [B, N, d_e]."""
        if self.form.embeddings == "external":
            return inputs[f"{prefix}_embedding"]
        values = [self._value(f, inputs, prefix) for f in self.spec.embedded_item_features]
        embedded: Tensor = self.items(values)
        return embedded

    def _value(self, feature: FeatureSpec, inputs: Inputs, prefix: str) -> Tensor:
        if self.form.gives(feature):
            return inputs[f"{prefix}_{feature.name}"]
        found: Tensor = self.lookups[_module_name(feature)](
            inputs[f"{prefix}_{self.form.item_key}"]
        )
        return found

    def user_of(self, inputs: Inputs) -> Tensor:
        """The user features: [B, width]."""
        if self.form.embeddings == "external":
            return inputs["user_embedding"]
        embedded: Tensor = self.users([inputs[f"user_{f.name}"] for f in self.spec.user_features])
        return embedded


def _module_name(feature: FeatureSpec) -> str:
    """A feature's name where only module names are allowed."""
    return "feature_" + feature.name.replace("%", "%25").replace(".", "%2E")


def item_chunks(events: EventEmbedding, items: int) -> Iterator[Tensor]:
    """Embeddings [1, n, d_e] of items 0 to `items` - 1, a chunk at a time; see below."""
    for start in range(0, items, _CHUNK):
        ids = torch.arange(start, min(start + _CHUNK, items), dtype=torch.int32)
        yield all_item_embeddings(events, ids)[None]


def all_item_embeddings(events: EventEmbedding, ids: Tensor) -> Tensor:
    """Embeddings [N, d_e] of item ids int32 [N], for a form that takes ids alone."""
    with torch.inference_mode():
        return events.items_of({f"item_{events.form.item_key}": ids[None]}, "item")[0]

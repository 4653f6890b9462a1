"""What SIM, ETA, SDIM and TWIN have in common: a cached short window beside a long branch.

A subclass names its tensors (`long_shapes`), its options and the order of the scoring network's
inputs, and computes its long branch. Everything else stands here once.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ckv_export.contract import ModelSpec, require
from ckv_export.model.base import CollectiveModel
from ckv_export.model.collective import CacheEntries, CollectiveAttention
from ckv_export.model.dnn import Block, FoldedDnn
from ckv_export.model.events import EventEmbedding, Inputs
from ckv_export.model.folds import output_weight
from ckv_export.model.shapes import Shapes, collective_shapes, dnn_shapes


class TargetAttentionModel(CollectiveModel):
    """A target-attention model in inference form."""

    dnn_order: ClassVar[tuple[str, ...]] = ("user", "target", "short", "long")

    def __init__(
        self, spec: ModelSpec, state: Mapping[str, Tensor], events: EventEmbedding | None = None
    ) -> None:
        super().__init__(spec, state, events)
        self.attention = CollectiveAttention(spec.attention, 0, state)
        self.dnn = FoldedDnn(spec.dnn, self._blocks(state), state)

    @classmethod
    @abc.abstractmethod
    def long_shapes(cls, spec: ModelSpec) -> Shapes:
        """Shape of each tensor ``long.*``; `FREE` stands for any size."""

    @abc.abstractmethod
    def event_key(self, events: Tensor) -> Tensor:
        """What the long branch searches events [B, N, d_e] by: float or bool [B, N, width]."""

    @property
    def searches_events(self) -> bool:
        """Whether `event_key` gives the events themselves."""
        return False

    def key_layout(self) -> tuple[int, str]:
        """Width and dtype of `event_key`."""
        key = self.event_key(torch.zeros(1, 1, self.spec.d_event))
        return key.shape[-1], "bool" if key.dtype == torch.bool else "float32"

    @abc.abstractmethod
    def long_branch(self, events: Tensor, key: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Events [B, N, d_e], their keys, mask bool [B, N], targets [B, C, d_e] -> [B, C, n].

        `long_output` is left to the scoring network.
        """

    def long_output(self, state: Mapping[str, Tensor]) -> Tensor | None:
        """The weight [d_e, n] that turns `long_branch` into the model's long interest, if any."""
        return output_weight(self.spec, state) if "long.o.weight" in state else None

    @classmethod
    def shapes(cls, spec: ModelSpec) -> Shapes:
        """The short window's attention, the long branch, the scoring network."""
        shapes = collective_shapes(spec.attention, spec.d_event, 0) | cls.long_shapes(spec)
        return shapes | dnn_shapes(spec.dnn, spec.d_user_features + 3 * spec.d_event)

    @classmethod
    def check_options(cls, spec: ModelSpec) -> None:
        """Raise `SpecError` unless `spec` is a one-layer model with a window and these options."""
        require(spec.window is not None, f"a model of kind {spec.kind!r} needs a window")
        require(
            spec.num_layers == 1,
            f"a model of kind {spec.kind!r} has one layer, got num_layers {spec.num_layers}",
        )
        super().check_options(spec)

    @property
    def attentions(self) -> Sequence[CollectiveAttention]:
        """The one over the short window."""
        return (self.attention,)

    def prefill(self, inputs: Inputs) -> list[CacheEntries]:
        """An entry depends on its event alone: the mask decides nothing here."""
        return [self.attention.encode(self.embedded(inputs, "event"))]

    def decode(self, inputs: Inputs) -> tuple[Tensor, list[CacheEntries]]:
        """Join the appended events to window and history, then score."""
        appended = self.embedded(inputs, "append")
        events = torch.cat([self.embedded(inputs, "history"), appended], dim=1)
        new = self.attention.encode(appended)
        entries = self.cached(inputs, "cache")[0].then(new)
        return self._scores(inputs, entries, events, self.event_key(events)), [new]

    def decode_items(self, inputs: Inputs) -> Tensor:
        """Scores [B, C] from the ids of all events and an item table (`contract.decode_items_io`).

        Entries and keys depend on the item alone, so they are looked up, not computed.
        """
        name = self.events.form.item_key
        ids = torch.cat([inputs[f"{g}_{name}"] for g in ("history", "append")], dim=1)
        tensors = [_rows(inputs[f"item_{suffix}"], ids) for suffix, _, _ in self.cache.tensors]
        entries = CacheEntries.of(self.cache, tensors)
        events = key = _rows(inputs["item_long_key"], ids)
        if not self.searches_events:
            events = torch.cat([self.embedded(inputs, g) for g in ("history", "append")], dim=1)
        return self._scores(inputs, entries, events, key)

    def _scores(self, inputs: Inputs, entries: CacheEntries, events: Tensor, key: Tensor) -> Tensor:
        mask = torch.cat([inputs["history_mask"], inputs["append_mask"]], dim=1)
        target = self.embedded(inputs, "candidate")
        window, window_mask = self._window(entries, mask)
        blocks = {
            "target": target,
            "short": self.attention.attend(target, window, window_mask, self.pools_of(inputs, 0)),
            "long": self.long_branch(events, key, mask, target),
        }
        return self.score(inputs, blocks)

    def _window(self, entries: CacheEntries, mask: Tensor) -> tuple[CacheEntries, Tensor]:
        cached, length = entries.k_user.shape[1], mask.shape[1]
        kept, kept_mask = window_positions(self.spec, cached, length, mask.device)
        return entries.take(kept), mask.index_select(1, kept_mask)

    def _blocks(self, state: Mapping[str, Tensor]) -> Sequence[Block]:
        event = self.spec.d_event
        widths = {"user": self.spec.d_user_features, "target": event, "short": event, "long": event}
        outputs = {"short": state["attention.0.o.weight"], "long": self.long_output(state)}
        return [
            Block(name, widths[name], outputs.get(name)) for name in self.dnn_order if widths[name]
        ]


def _rows(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of a table [I, ...] at ids [B, N]: [B, N, ...]."""
    if table.ndim > 1:
        return F.embedding(ids, table)
    return F.embedding(ids, table.unsqueeze(1)).squeeze(-1)


def window_positions(
    spec: ModelSpec, cached: int, length: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Positions of the short window among `cached` entries, and of its mask among `length` events.

    The window is the last W - 1 events. Under ``mask_alignment: fuxictr`` a history of W or more
    takes the mask one position earlier than the events, as the paper authors' code does. Both are
    made on `device`.
    """
    assert spec.window is not None
    late = 0
    if spec.mask_alignment == "fuxictr":
        late = torch.sym_min(torch.sym_max(length - spec.window + 1, 0), 1)
    # Cut from all positions, after all else is computed: a size min(cached, W - 1) is 0 or 1 for
    # W = 2, and PyTorch's exporter would take that 1 for a constant.
    positions = torch.arange(cached, device=device)
    shifted = positions + (length - cached - late)
    return positions[1 - spec.window :], shifted[1 - spec.window :]

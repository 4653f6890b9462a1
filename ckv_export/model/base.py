"""What a model of any kind is to the graphs: prefill, decode, and its tensors by name."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from ckv_export.contract import SIZE_END, CacheSpec, ModelSpec, require
from ckv_export.errors import nearest
from ckv_export.model.collective import SIDES, CacheEntries, CollectiveAttention, Pools
from ckv_export.model.dnn import FoldedDnn
from ckv_export.model.events import EventEmbedding, Inputs
from ckv_export.model.shapes import Shapes


class CollectiveModel(nn.Module, abc.ABC):
    """A CollectiveKV model in inference form.

    A subclass names its `options` and tensors (`shapes`), keeps its layers' attention in
    `attentions`, and computes `prefill` and `decode` from inputs named as in the contract.
    """

    options: ClassVar[Mapping[str, type]] = {}
    dnn: FoldedDnn

    def __init__(
        self, spec: ModelSpec, state: Mapping[str, Tensor], events: EventEmbedding | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.cache = CacheSpec.of(spec)
        self.events = events or EventEmbedding(spec, state)
        self.precision = "fp32"

    @classmethod
    @abc.abstractmethod
    def shapes(cls, spec: ModelSpec) -> Shapes:
        """Every tensor but the embeddings; `FREE` stands for any size."""

    @classmethod
    def check_options(cls, spec: ModelSpec) -> None:
        """Raise `SpecError` unless `spec` has exactly the options of this kind, of their types."""
        for name in spec.options:
            require(
                name in cls.options,
                f"{spec.kind}: unknown option {name!r}{nearest(name, cls.options)}",
            )
        for name, kind in cls.options.items():
            got = spec.options.get(name)
            require(
                type(got) is kind and (kind is bool or got > 0),  # type: ignore[operator]
                f"{spec.kind}: the option {name!r} must be of type {kind.__name__}"
                f"{'' if kind is bool else ' above 0'}, got {got!r}",
            )
            require(
                kind is bool or got < SIZE_END,  # type: ignore[operator]
                f"{spec.kind}: the option {name!r} must be below {SIZE_END}, got {got!r}",
            )

    @property
    @abc.abstractmethod
    def attentions(self) -> Sequence[CollectiveAttention]:
        """The CollectiveKV attention of each layer."""

    @abc.abstractmethod
    def prefill(self, inputs: Inputs) -> list[CacheEntries]:
        """Inputs of `contract.prefill_io` -> what each layer caches for the S events given."""

    @abc.abstractmethod
    def decode(self, inputs: Inputs) -> tuple[Tensor, list[CacheEntries]]:
        """Inputs of `contract.decode_io` -> scores [B, C], and each layer's T appended entries."""

    def pools(self) -> dict[tuple[int, str], Tensor]:
        """The pool [M, d - d_u] of each layer and shared side, as decode reads it."""
        return {
            (layer, side): pool.detach()
            for layer, attention in enumerate(self.attentions)
            for side, pool in zip(SIDES, attention.pools, strict=True)
            if pool is not None
        }

    def pools_of(self, inputs: Inputs, layer: int) -> Pools:
        """The pools that `layer` reads: those among the inputs, or else its own."""
        if self.events.form.pools is None:
            return self.attentions[layer].pools
        key, value = (inputs.get(f"pool_{side}_{layer}") for side in SIDES)
        return key, value

    def embedded(self, inputs: Inputs, prefix: str) -> Tensor:
        """Embeddings of the events or candidates called ``<prefix>_*``: [B, N, d_e]."""
        return self.events.items_of(inputs, prefix)

    def cached(self, inputs: Inputs, prefix: str) -> list[CacheEntries]:
        """The cache tensors called ``<prefix>_*`` [B, L, N, ...], a layer each."""
        tensors = [inputs[f"{prefix}_{suffix}"] for suffix, _, _ in self.cache.tensors]
        layers = zip(*(t.unbind(1) for t in tensors), strict=True)
        return [CacheEntries.of(self.cache, list(layer)) for layer in layers]

    def score(self, inputs: Inputs, blocks: dict[str, Tensor]) -> Tensor:
        """The scoring network over `blocks` and the user features: [B, C]."""
        if self.spec.user_features:
            blocks["user"] = self.events.user_of(inputs).unsqueeze(1)
        scores: Tensor = self.dnn(blocks)
        return scores

"""What SIM, ETA, SDIM and TWIN have in common: a cached short window beside a long branch.

A subclass names its tensors (`long_shapes`), its options and the order of the scoring network's
inputs, and computes its long branch. Everything else stands here once.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ckv_export.contract import ModelSpec, require
from ckv_export.errors import nearest
from ckv_export.model.collective import CacheEntries, CollectiveAttention
from ckv_export.model.dnn import Block, FoldedDnn
from ckv_export.model.embedding import FeatureEmbedding

Shape = tuple[int, ...]
FREE = -1
"""In a shape: any size."""


class TargetAttentionModel(nn.Module, abc.ABC):
    """A target-attention model in inference form, its parts as the two graphs need them."""

    options: ClassVar[Mapping[str, type]] = {}
    dnn_order: ClassVar[tuple[str, ...]] = ("user", "target", "short", "long")

    def __init__(self, spec: ModelSpec, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.spec = spec
        self.embed_item = FeatureEmbedding(spec.item_features, state)
        self.embed_user = FeatureEmbedding(spec.user_features, state)
        self.attention = CollectiveAttention(spec.attention, 0, state)
        self.dnn = FoldedDnn(spec.dnn, self._blocks(state), state)

    @classmethod
    @abc.abstractmethod
    def long_shapes(cls, spec: ModelSpec) -> Mapping[str, Shape]:
        """Shape of each tensor ``long.*``; `FREE` stands for any size."""

    @abc.abstractmethod
    def long_branch(self, events: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Events [B, N, d_e], mask bool [B, N], targets [B, C, d_e] -> [B, C, n] before W_o."""

    @classmethod
    def check_options(cls, spec: ModelSpec) -> None:
        """Raise `SpecError` unless `spec` has exactly the options of this kind, of their types."""
        require(spec.window is not None, f"a model of kind {spec.kind!r} needs a window")
        for name in spec.options:
            require(
                name in cls.options,
                f"{spec.kind}: unknown option {name!r}{nearest(name, cls.options)}",
            )
        for name, kind in cls.options.items():
            got = spec.options.get(name)
            require(
                type(got) is kind and (kind is bool or got > 0),  # type: ignore[operator]
                f"{spec.kind}: the option {name!r} must be a {kind.__name__}"
                f"{'' if kind is bool else ' above 0'}, got {got!r}",
            )

    def _blocks(self, state: Mapping[str, Tensor]) -> Sequence[Block]:
        event = self.spec.d_event
        widths = {"user": self.spec.d_user_features, "target": event, "short": event, "long": event}
        outputs = {"short": "attention.0.o", "long": "long.o"}
        return [
            Block(
                name,
                widths[name],
                state.get(f"{outputs.get(name)}.weight"),
                state.get(f"{outputs.get(name)}.bias"),
            )
            for name in self.dnn_order
            if widths[name]
        ]

    def encode(self, events: Tensor) -> CacheEntries:
        """What is cached for events [B, N, d_e]."""
        return self.attention.encode(events)

    def pools(self) -> dict[tuple[int, str], Tensor]:
        """The pool [M, d - d_u] of each layer and shared side, as decode reads it."""
        sides = {"k": self.attention.k, "v": self.attention.v}
        return {(0, name): side.pool.detach() for name, side in sides.items() if side.shared}

    def score(
        self,
        window: CacheEntries,
        window_mask: Tensor,
        events: Tensor,
        mask: Tensor,
        target: Tensor,
        user: Sequence[Tensor],
    ) -> Tensor:
        """Scores [B, C] of targets [B, C, d_e], see `long_branch` for the rest."""
        blocks = {
            "target": target,
            "short": self.attention.attend(target, window, window_mask),
            "long": self.long_branch(events, mask, target),
        }
        if self.spec.user_features:
            blocks["user"] = self.embed_user(user).unsqueeze(1)
        scores: Tensor = self.dnn(blocks)
        return scores


def window_positions(spec: ModelSpec, cached: int, length: int) -> tuple[Tensor, Tensor]:
    """Positions of the short window among `cached` entries, and of its mask among `length` events.

    The window is the last W - 1 events. Under ``mask_alignment: fuxictr`` a history of W or more
    takes the mask one position earlier than the events, as the paper authors' code does.
    """
    assert spec.window is not None
    size = torch.sym_min(cached, spec.window - 1)
    late = 0
    if spec.mask_alignment == "fuxictr":
        late = torch.sym_min(torch.sym_max(length - spec.window + 1, 0), 1)
    offsets = torch.arange(size)
    return offsets + (cached - size), offsets + (length - size - late)

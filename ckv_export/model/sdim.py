"""SDIM (Cao et al. 2022, arXiv 2205.10249) with a CollectiveKV short window.

Each of n hashes puts an embedding into a bucket by the signs of ``e . r`` for a few fixed random
rotations r. The long interest is the mean over hashes of the sum of the events that share the
target's bucket, each sum L2-normalised if the model says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ckv_export.contract import ModelSpec
from ckv_export.model import ops
from ckv_export.model.embedding import frozen
from ckv_export.model.events import EventEmbedding
from ckv_export.model.precision import Reducible
from ckv_export.model.shapes import FREE, Shapes
from ckv_export.model.target_attention import TargetAttentionModel

NORM_FLOOR = 1e-12
"""Least norm divided by: an empty bucket's sum stays 0."""


class Sdim(TargetAttentionModel, Reducible):
    """SDIM; options: ``l2_norm``, whether each bucket's sum is normalised."""

    options = {"l2_norm": bool}  # noqa: RUF012
    dnn_order = ("user", "target", "long", "short")

    def __init__(
        self, spec: ModelSpec, state: Mapping[str, Tensor], events: EventEmbedding | None = None
    ) -> None:
        super().__init__(spec, state, events)
        self.l2_norm = bool(spec.options["l2_norm"])
        self.hashes, self.bits = state["long.rotations"].shape[1:]
        self.rotations = frozen(state["long.rotations"].flatten(1))
        self.summed_in = self.rotations.dtype

    def reduce(self, dtype: torch.dtype) -> None:
        """Sum the events of a bucket in `dtype`."""
        self.summed_in = dtype

    @classmethod
    def long_shapes(cls, spec: ModelSpec) -> Shapes:
        """Rotations [d_e, hashes, bits]."""
        return {"long.rotations": (spec.d_event, FREE, FREE)}

    def event_key(self, events: Tensor) -> Tensor:
        """Hash codes: bool [B, N, hashes * bits]."""
        return events @ self.rotations > 0

    def long_branch(self, events: Tensor, key: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Mean over hashes of the events in the target's bucket: [B, C, d_e]."""
        wanted, found = self._by_hash(self.event_key(target)), self._by_hash(key)
        agreement = wanted @ found.transpose(-1, -2)
        # A bucket is shared where all signs agree: then, and only then, their products sum to bits.
        shared = (agreement == self.bits) & mask[:, None, None]
        events = events.to(self.summed_in)
        if not self.l2_norm:
            return shared.to(events.dtype).mean(1) @ events
        sums = ops.widened(shared.to(events.dtype) @ events[:, None])
        norms = sums.square().sum(-1, keepdim=True).sqrt().clamp(min=NORM_FLOOR)
        return (sums / norms).mean(1)

    def _by_hash(self, codes: Tensor) -> Tensor:
        """Codes bool [B, N, hashes * bits] as +-1: [B, hashes, N, bits]."""
        return ops.signs(codes).unflatten(-1, (self.hashes, self.bits)).transpose(1, 2)

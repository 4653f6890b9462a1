"""SDIM (Cao et al. 2022, arXiv 2205.10249) with a CollectiveKV short window.

Each of n hashes puts an embedding into a bucket by the signs of ``e . r`` for a few fixed random
rotations r. The long interest is the mean over hashes of the sum of the events that share the
target's bucket, each sum L2-normalised if the model says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ckv_export.contract import ModelSpec
from ckv_export.model import ops
from ckv_export.model.embedding import frozen
from ckv_export.model.shapes import FREE, Shapes
from ckv_export.model.target_attention import TargetAttentionModel

NORM_FLOOR = 1e-12
"""Least norm divided by: an empty bucket's sum stays 0."""


class Sdim(TargetAttentionModel):
    """SDIM; options: ``l2_norm``, whether each bucket's sum is normalised."""

    options = {"l2_norm": bool}  # noqa: RUF012
    dnn_order = ("user", "target", "long", "short")

    def __init__(self, spec: ModelSpec, state: Mapping[str, Tensor]) -> None:
        super().__init__(spec, state)
        self.l2_norm = bool(spec.options["l2_norm"])
        self.hashes, self.bits = state["long.rotations"].shape[1:]
        self.rotations = frozen(state["long.rotations"].flatten(1))

    @classmethod
    def long_shapes(cls, spec: ModelSpec) -> Shapes:
        """Rotations [d_e, hashes, bits]."""
        return {"long.rotations": (spec.d_event, FREE, FREE)}

    def long_branch(self, events: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Mean over hashes of the events in the target's bucket: [B, C, d_e]."""
        agreement = self.signs(target) @ self.signs(events).transpose(-1, -2)
        # A bucket is shared where all signs agree: then, and only then, their products sum to bits.
        shared = (agreement == self.bits) & mask[:, None, None]
        if not self.l2_norm:
            return shared.to(events.dtype).mean(1) @ events
        sums = shared.to(events.dtype) @ events[:, None]
        norms = sums.square().sum(-1, keepdim=True).sqrt().clamp(min=NORM_FLOOR)
        return (sums / norms).mean(1)

    def signs(self, x: Tensor) -> Tensor:
        """Hash codes of x [B, N, d_e] as +-1: [B, hashes, N, bits]."""
        codes = ops.signs(x @ self.rotations).unflatten(-1, (self.hashes, self.bits))
        return codes.transpose(1, 2)

"""SDIM (Cao et al. 2022, arXiv 2205.10249) with a CollectiveKV short window.

Each of n hashes puts an embedding into a bucket by the signs of ``e . r`` for a few fixed random
rotations r. The long interest is the mean over hashes of the sum of the events that share the
target's bucket, each sum L2-normalised if the model says so.
"""

from __future__ import annotations

import itertools
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

MOST_BUCKETS = 64
"""Up to as many buckets a hash, each is summed once for all candidates; with more, the candidates'
own are, each by itself."""


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
        self.sums_buckets = 2**self.bits <= MOST_BUCKETS
        if self.sums_buckets:
            self.buckets = frozen(_all_signs(self.bits))

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
        found, wanted = self._by_hash(key), self._by_hash(self.event_key(target))
        if self.sums_buckets:
            # Each user's own: older ONNX Runtimes multiply no matrix with those of no user.
            buckets = self.buckets.expand(*found.shape[:2], -1, -1)
            sums = self._sums(events, mask, buckets, found)
            taken = self._shared(wanted, buckets).to(sums.dtype)
            return taken.transpose(1, 2).flatten(2) @ sums.flatten(1, 2) / self.hashes
        if self.l2_norm:
            return self._sums(events, mask, wanted, found).mean(1)
        shared = self._shared(wanted, found) & mask[:, None, None]
        return shared.to(self.summed_in).mean(1) @ events.to(self.summed_in)

    def _sums(self, events: Tensor, mask: Tensor, wanted: Tensor, found: Tensor) -> Tensor:
        """Of the events with the signs wanted, normalised if asked: fp32 [B, hashes, n, d_e]."""
        shared = self._shared(wanted, found) & mask[:, None, None]
        sums = shared.to(self.summed_in) @ events.to(self.summed_in)[:, None]
        sums = ops.widened(sums)
        if not self.l2_norm:
            return sums
        return sums / sums.square().sum(-1, keepdim=True).sqrt().clamp(min=NORM_FLOOR)

    def _shared(self, wanted: Tensor, found: Tensor) -> Tensor:
        """Where all signs agree; then, and only then, their products sum to bits: bool."""
        return wanted @ found.transpose(-1, -2) == self.bits

    def _by_hash(self, codes: Tensor) -> Tensor:
        """Codes bool [B, N, hashes * bits] as +-1: [B, hashes, N, bits]."""
        return ops.signs(codes).unflatten(-1, (self.hashes, self.bits)).transpose(1, 2)


def _all_signs(bits: int) -> Tensor:
    """Every sequence of `bits` signs: +-1 [2**bits, bits]."""
    signs = list(itertools.product((-1.0, 1.0), repeat=bits))
    return torch.tensor(signs).reshape(2**bits, bits)

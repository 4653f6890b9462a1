"""ETA (Chen et al. 2021, arXiv 2108.04468) with a CollectiveKV short window.

An embedding's hash code has a 1 where ``e . r > 0`` for each fixed random rotation r. The k
events whose codes are nearest to the target's in Hamming distance go through multi-head target
attention; a masked event is farther away than any code can be.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ckv_export.contract import ModelSpec
from ckv_export.model import ops
from ckv_export.model.embedding import frozen
from ckv_export.model.events import EventEmbedding
from ckv_export.model.selected_attention import SelectedAttention, attention_shapes
from ckv_export.model.shapes import FREE, Shapes
from ckv_export.model.target_attention import TargetAttentionModel


class Eta(TargetAttentionModel):
    """ETA; options: ``topk``, events kept; ``use_scale``, whether the long attention scales."""

    options = {"topk": int, "use_scale": bool}  # noqa: RUF012

    def __init__(
        self, spec: ModelSpec, state: Mapping[str, Tensor], events: EventEmbedding | None = None
    ) -> None:
        super().__init__(spec, state, events)
        self.topk = int(spec.options["topk"])
        self.rotations = frozen(state["long.rotations"])
        scaled = bool(spec.options["use_scale"])
        self.search = SelectedAttention(spec, scaled, state)

    @classmethod
    def long_shapes(cls, spec: ModelSpec) -> Shapes:
        """Rotations [d_e, bits] beside the attention's matrices."""
        return {"long.rotations": (spec.d_event, FREE), **attention_shapes(spec)}

    def event_key(self, events: Tensor) -> Tensor:
        """Hash codes: bool [B, N, bits]."""
        return events @ self.rotations > 0

    def long_branch(self, events: Tensor, key: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Attention over the k nearest events: [B, C, n]."""
        bits = self.rotations.shape[1]
        found = ops.masked_keys(ops.signs(key), mask)
        agreement = ops.signs(self.event_key(target)) @ found.transpose(1, 2)
        # Of n signs, those that agree minus those that differ are n - 2 * distance: whole numbers,
        # exact in fp32. A masked event's distance is bits + 1.
        farther = (1.0 - mask.to(torch.float32)) * (-bits - 2.0)
        nearness = agreement + farther.unsqueeze(1)
        return self.search(target, events, mask, ops.select_largest(nearness, self.topk))

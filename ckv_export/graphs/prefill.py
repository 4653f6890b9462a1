"""Prefill: events to cache entries, an entry for each event given."""

from __future__ import annotations

from torch import Tensor, nn

from ckv_export.contract import CacheSpec, prefill_io
from ckv_export.model.target_attention import TargetAttentionModel


class PrefillGraph(nn.Module):
    """Module with the inputs and outputs of `contract.prefill_io`, in order."""

    def __init__(self, model: TargetAttentionModel) -> None:
        super().__init__()
        self.model = model
        self.io = prefill_io(model.spec)
        self.cache = CacheSpec.of(model.spec)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """``event_<f>`` [B, S, ...] and ``event_mask`` [B, S] -> ``cache_*`` [B, L, S, ...].

        An entry depends on its event alone, so the mask decides nothing here; it is part of the
        contract for models whose layers see one another.
        """
        *events, _mask = inputs
        entries = self.model.encode(self.model.embed_item(events))
        return tuple(t.unsqueeze(1) for t in entries.tensors(self.cache))

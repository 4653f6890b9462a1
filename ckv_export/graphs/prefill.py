"""Prefill: events to cache entries, an entry for each event given."""

from __future__ import annotations

from torch import Tensor, nn

from ckv_export.contract import prefill_io
from ckv_export.graphs.entries import by_name, stacked
from ckv_export.model.base import CollectiveModel


class PrefillGraph(nn.Module):
    """Module with the inputs and outputs of `contract.prefill_io`, in order."""

    def __init__(self, model: CollectiveModel) -> None:
        super().__init__()
        self.model = model
        self.io = prefill_io(model.spec, model.events.form)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Tensors of `io.inputs` -> ``cache_*`` [B, L, S, ...]."""
        return stacked(self.model.cache, self.model.prefill(by_name(self.io, inputs)))

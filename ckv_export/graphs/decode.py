"""Decode: join the newest events to a cached history, score candidates, return what to cache."""

from __future__ import annotations

from torch import Tensor, nn

from ckv_export.contract import decode_io
from ckv_export.graphs.entries import by_name, stacked
from ckv_export.model.base import CollectiveModel


class DecodeGraph(nn.Module):
    """Module with the inputs and outputs of `contract.decode_io`, in order."""

    def __init__(self, model: CollectiveModel) -> None:
        super().__init__()
        self.model = model
        self.io = decode_io(model.spec, model.events.form)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Tensors of `io.inputs` -> ``score`` [B, C] and ``append_*`` [B, L, T, ...]."""
        score, entries = self.model.decode(by_name(self.io, inputs))
        return (score, *stacked(self.model.cache, entries))

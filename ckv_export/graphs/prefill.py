"""Prefill: events to cache entries, an entry for each event given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ckv_export.contract import TensorSpec, prefill_io
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

    def padding(self) -> dict[str, list[float]]:
        """What a window caches of padding, an event of zeros, where that isn't zero.

        A history with nothing real in its window attends to padding. With a bias, or a table whose
        row 0 is not zero, that has another entry than zeros. ``cache_*``: [L, ...] in a row.
        """
        if self.model.spec.window is None:
            return {}
        with torch.inference_mode():
            outputs = self(*(_zeros(tensor) for tensor in self.io.inputs))
        named = zip(self.io.outputs, outputs, strict=True)
        return {t.name: entry.flatten().tolist() for t, entry in named if entry.any()}


def _zeros(tensor: TensorSpec) -> Tensor:
    return torch.zeros(tensor.shape({"B": 1, "S": 1}), dtype=getattr(torch, tensor.dtype))

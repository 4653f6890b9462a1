"""Decode with an item table: a user's history is its item ids, and nothing else is cached."""

from __future__ import annotations

from torch import Tensor, nn

from ckv_export.contract import decode_items_io, item_table_tensors
from ckv_export.graphs.entries import by_name
from ckv_export.model.target_attention import TargetAttentionModel


class DecodeItemsGraph(nn.Module):
    """Module with the inputs and outputs of `contract.decode_items_io`, in order."""

    def __init__(self, model: TargetAttentionModel) -> None:
        super().__init__()
        self.model = model
        table = item_table_tensors(model.spec, *model.key_layout())
        self.io = decode_items_io(model.spec, model.events.form, table)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Tensors of `io.inputs` -> ``score`` [B, C]."""
        return (self.model.decode_items(by_name(self.io, inputs)),)

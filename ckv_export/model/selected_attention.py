"""Softmax attention over the events that a search has selected.

Selection is a mask, not a gather: K and V are projected once per event and shared by all
candidates, where gathering would copy k rows for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ckv_export.contract import ModelSpec
from ckv_export.model import ops
from ckv_export.model.embedding import ReducibleProjection
from ckv_export.model.folds import Unprojected, carried_over, takes_events
from ckv_export.model.shapes import Shape, Shapes


def attention_shapes(spec: ModelSpec) -> Shapes:
    """W_q, W_k, W_v [d, d_e] and W_o [d_e, d] of a long branch's attention."""
    inward: Shape = (spec.attention.d, spec.d_event)
    outward: Shape = (spec.d_event, spec.attention.d)
    return {f"long.{n}.weight": inward for n in "qkv"} | {"long.o.weight": outward}


class SelectedAttention(nn.Module):
    """Multi-head attention ``long.{q,k,v}`` without activations; `folds.output_weight` is
    left to what follows.
    """

    def __init__(self, spec: ModelSpec, scaled: bool, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.heads = spec.attention.num_heads
        self.scale = ops.attention_scale(spec.attention.d, self.heads, scaled)
        query, key, value = (state[f"long.{n}.weight"] for n in "qkv")
        self.key: nn.Module
        self.value: nn.Module
        made_of = ""
        if takes_events(spec):
            made_of = "long.q.weight and long.k.weight"
            query = carried_over(query, key, made_of)
            self.key, self.value = Unprojected(), Unprojected()
        else:
            self.key, self.value = ReducibleProjection(key), ReducibleProjection(value)
        self.query = ReducibleProjection(query)
        self.query.made_of = made_of

    def forward(self, target: Tensor, events: Tensor, mask: Tensor, selected: Tensor) -> Tensor:
        """target [B, C, d_e], events [B, N, d_e], mask [B, N], selected [B, C, N] -> [B, C, n]."""
        query = self.query(target) * self.scale
        # A masked key is zero, so its logit is what is added: exactly MASKED. Mask and selection
        # are joined before there are heads, and pass over the logits in one addition.
        key = ops.masked_keys(self.key(events), mask)
        added = ops.excluded_logits(selected) + ops.masked_row(mask)
        logits = ops.attention_logits(query, key, self.heads) + added.unsqueeze(1)
        return ops.weighted_values(logits, self.value(events), self.heads)

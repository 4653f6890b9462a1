"""TWIN (Chang et al. 2023, arXiv 2302.02352) with a CollectiveKV short window.

Search and attention use one score: ``q = W_q e_target``, ``k_t = W_h e_t``, ``v_t = W_v e_t``;
each head keeps its own top-k of ``q . k_t / sqrt(d / H)`` and softmaxes over them. The score
selects, so it is never computed in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ckv_export.contract import ModelSpec
from ckv_export.model import ops
from ckv_export.model.embedding import Projection, ReducibleProjection
from ckv_export.model.events import EventEmbedding
from ckv_export.model.folds import Unprojected, carried_over, takes_events
from ckv_export.model.selected_attention import attention_shapes
from ckv_export.model.shapes import Shapes
from ckv_export.model.target_attention import TargetAttentionModel


class Twin(TargetAttentionModel):
    """TWIN; options: ``topk``, events that each head keeps."""

    options = {"topk": int}  # noqa: RUF012

    def __init__(
        self, spec: ModelSpec, state: Mapping[str, Tensor], events: EventEmbedding | None = None
    ) -> None:
        super().__init__(spec, state, events)
        self.topk = int(spec.options["topk"])
        query, key, value = (state[f"long.{n}.weight"] for n in "qkv")
        self.long_key: nn.Module
        self.long_value: nn.Module
        if takes_events(spec):
            query = carried_over(query, key, "long.q.weight and long.k.weight")
            self.long_key, self.long_value = nn.Identity(), Unprojected()
        else:
            self.long_key, self.long_value = Projection(key), ReducibleProjection(value)
        self.long_query = Projection(query)

    @classmethod
    def long_shapes(cls, spec: ModelSpec) -> Shapes:
        """The attention's W_q, W_h (``k``), W_v and W_o."""
        return attention_shapes(spec)

    @property
    def searches_events(self) -> bool:
        """Where W_h is on the query's side."""
        return takes_events(self.spec)

    def event_key(self, events: Tensor) -> Tensor:
        """W_h e: [B, N, d], or e itself."""
        key: Tensor = self.long_key(events)
        return key

    def long_branch(self, events: Tensor, key: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Attention over each head's own top-k: [B, C, n]."""
        heads = self.spec.attention.num_heads
        scale = ops.attention_scale(self.spec.attention.d, heads, scaled=True)
        logits = ops.masked_logits(self.long_query(target) * scale, key, mask, heads)
        logits = logits + ops.excluded_logits(ops.select_largest(logits, self.topk))
        return ops.weighted_values(logits, self.long_value(events), heads)

"""SIM with soft search (Pi et al. 2020, arXiv 2006.05639) and a CollectiveKV short window.

General search unit: relevance ``g_t = (W_a e_target) . (W_b e_t) * mask_t``; the top-k events by g
go through standard multi-head target attention. A padded event scores exactly 0, so it can
outrank events with a negative score.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ckv_export.contract import ModelSpec
from ckv_export.model import ops
from ckv_export.model.embedding import Projection
from ckv_export.model.events import EventEmbedding
from ckv_export.model.folds import carried_over, narrower
from ckv_export.model.selected_attention import SelectedAttention, attention_shapes
from ckv_export.model.shapes import Shapes
from ckv_export.model.target_attention import TargetAttentionModel


class Sim(TargetAttentionModel):
    """SIM; options: ``topk``, events that the search keeps."""

    options = {"topk": int}  # noqa: RUF012

    def __init__(
        self, spec: ModelSpec, state: Mapping[str, Tensor], events: EventEmbedding | None = None
    ) -> None:
        super().__init__(spec, state, events)
        self.topk = int(spec.options["topk"])
        asked, found = (state[f"long.gsu_{side}.weight"] for side in ("target", "event"))
        carried = self.searches_events
        self.gsu_event = None if carried else Projection(found)
        if carried:
            asked = carried_over(asked, found, "long.gsu_target.weight and long.gsu_event.weight")
        self.gsu_target = Projection(asked)
        self.search = SelectedAttention(spec, True, state)

    @classmethod
    def long_shapes(cls, spec: ModelSpec) -> Shapes:
        """W_a and W_b [d, d_e]; the attention's W_q, W_k, W_v [d, d_e] and W_o [d_e, d]."""
        search = (spec.attention.d, spec.d_event)
        return {
            "long.gsu_target.weight": search,
            "long.gsu_event.weight": search,
            **attention_shapes(spec),
        }

    @property
    def searches_events(self) -> bool:
        """Where W_b is on the target's side."""
        return narrower(self.spec)

    def event_key(self, events: Tensor) -> Tensor:
        """W_b e: [B, N, d], or e itself."""
        key: Tensor = events if self.gsu_event is None else self.gsu_event(events)
        return key

    def long_branch(self, events: Tensor, key: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Attention over the top-k events by g: [B, C, n]."""
        relevance = self.gsu_target(target) @ ops.masked_keys(key, mask).transpose(1, 2)
        selected = ops.select_largest(relevance, self.topk)
        attended: Tensor = self.search(target, events, mask, selected)
        return attended

"""What a trained state is worth on clicks it has not seen, in inference form."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ckv_export.contract import ModelSpec
from ckv_export.training.clicks import Clicks
from ckv_export.training.hstu import trained_model

BATCH = 128


def auc(score: Tensor, label: Tensor) -> float:
    """Chance that a clicked candidate scores above another one; a tie counts half.

    Both of any one shape. nan where all labels are alike.
    """
    clicked, other = (score[label.bool() == kind].flatten().sort().values for kind in (True, False))
    below = torch.searchsorted(other, clicked) + torch.searchsorted(other, clicked, right=True)
    pairs = len(clicked) * len(other)
    return float(below.sum()) / (2 * pairs) if pairs else float("nan")


@torch.inference_mode()
def scores(spec: ModelSpec, state: Mapping[str, Tensor], clicks: Clicks) -> Tensor:
    """The scores of every candidate: [N, C]."""
    reference = trained_model(spec, state)
    parts = [
        reference.score(c.history, c.mask, c.candidates, c.user) for c in clicks.batches(BATCH)
    ]
    return torch.cat(parts)


@torch.inference_mode()
def rows_used(spec: ModelSpec, state: Mapping[str, Tensor], clicks: Clicks) -> dict[str, int]:
    """How many pool rows the real events are routed to: of each side, over all layers."""
    reference = trained_model(spec, state)
    used = {side: torch.zeros(0, 2, dtype=torch.int64) for side in pool_rows(spec)}
    for batch in clicks.batches(BATCH):
        for layer, entries in enumerate(reference.cache(batch.history, batch.mask)):
            for side, seen in used.items():
                index = entries.index[side]
                assert index is not None
                rows = F.pad(index[batch.mask].unsqueeze(-1), (1, 0), value=layer)
                used[side] = torch.cat([seen, rows]).unique(dim=0)
    return {side: len(seen) for side, seen in used.items()}


def pool_rows(spec: ModelSpec) -> dict[str, int]:
    """How many rows there are: of each side with a pool, over all layers."""
    attention = spec.attention
    return {s: attention.pool_rows(s) * spec.num_layers for s in "kv" if attention.shared(s)}

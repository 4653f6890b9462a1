"""What a trained state is worth on clicks it has not seen, in inference form."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ckv_export.contract import ModelSpec
from ckv_export.model.reference import Reference
from ckv_export.training.clicks import Clicks

BATCH = 128


def auc(score: Tensor, label: Tensor) -> float:
    """Chance that a clicked candidate scores above another one; a tie counts half.

    Both of any one shape. nan where all labels are alike.
    """
    clicked, other = (score[label.bool() == kind].flatten().sort().values for kind in (True, False))
    below = torch.searchsorted(other, clicked) + torch.searchsorted(other, clicked, right=True)
    return float(below.double().mean() / 2 / max(len(other), 1)) if len(other) else float("nan")


@torch.inference_mode()
def scores(spec: ModelSpec, state: Mapping[str, Tensor], clicks: Clicks) -> Tensor:
    """The reference's scores of every candidate: [N, C]."""
    reference = Reference(spec, state)
    parts = [reference.score(c.history, c.mask, c.candidates, c.user) for c in clicks.batches(BATCH)]
    return torch.cat(parts)


@torch.inference_mode()
def rows_used(spec: ModelSpec, state: Mapping[str, Tensor], clicks: Clicks) -> dict[str, int]:
    """How many pool rows the real events are routed to, for each side that has a pool."""
    reference = Reference(spec, state)
    used: dict[str, set[int]] = {s: set() for s in ("k", "v") if spec.attention.shared(s)}
    for batch in clicks.batches(BATCH):
        entries = reference.entries(reference.embed(spec.item_features, batch.history))
        for side, rows in used.items():
            index = entries.index[side]
            assert index is not None
            rows.update(index[batch.mask].unique().tolist())
    return {side: len(rows) for side, rows in used.items()}

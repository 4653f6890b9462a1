"""The kernels' operators where there is no GPU."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from ckv_export.model import pooled


def stand_in() -> SimpleNamespace:
    """The kernels' operators, computed by PyTorch on the CPU."""
    return SimpleNamespace(
        pool_gather_concat=pooled.pool_gather_concat,
        pooled_attention=lambda *a: pooled.pooled_attention(*a[:10]),
        pooled_pointwise_attention=pooled.pooled_pointwise_attention,
        exponentials=exponentials,
    )


def exponentials(x: torch.Tensor, rounds: int) -> torch.Tensor:
    for _ in range(rounds):
        x = torch.exp2(-x)
    return x

"""What CollectiveKV minimises beside the error on clicks (arXiv 2601.19178).

logits [B, n, M] are a router's, real bool [B, n] marks the events that are no padding.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

# A row that no event of a batch comes near has a mean probability of 0, and no logarithm.
LEAST_PROBABILITY = 1e-12


def masked_mean(x: Tensor, real: Tensor) -> Tensor:
    """Mean of x [B, n, ...] over the real events of all rows: [...]; 0 where none is real."""
    weights = real.flatten().to(x.dtype)
    return weights @ x.flatten(0, 1) / weights.sum().clamp(min=1)


def peak_loss(logits: Tensor, real: Tensor) -> Tensor:
    """``mean of -log sigmoid(max_j logit_j)``: brings the gate sigmoid(max) to 1.

    Inference takes the plain row, so the gate of training has to vanish.
    """
    return masked_mean(-F.logsigmoid(logits.amax(-1)), real)


def balance_loss(logits: Tensor, real: Tensor) -> Tensor:
    """``KL(p || uniform) = sum_j p_j ln(p_j M)``, p the mean of softmax(logits) over events.

    0 where every row is as probable, ln M where one row takes all.
    """
    p = masked_mean(logits.softmax(-1), real)
    return (p * (p.clamp(min=LEAST_PROBABILITY).log() + math.log(logits.shape[-1]))).sum()

"""The router's losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ckv_export.training.losses import balance_loss, masked_mean, peak_loss

LN2, LN3 = math.log(2), math.log(3)
# softmax over the rows: [3/4, 1/4], [1/4, 3/4], [1/2, 1/2]; the last event is padding
LOGITS = torch.tensor([[[LN3, 0.0], [0.0, LN3]], [[0.0, 0.0], [50.0, -50.0]]])
REAL = torch.tensor([[True, True], [True, False]])


def test_peak_loss_is_the_mean_softplus_of_the_negative_peak() -> None:
    # sigmoid(ln 3) = 3/4 twice, sigmoid(0) = 1/2
    assert peak_loss(LOGITS, REAL).item() == pytest.approx((2 * math.log(4 / 3) + LN2) / 3)


def test_balanced_rows_cost_nothing() -> None:
    assert balance_loss(LOGITS, REAL).item() == pytest.approx(0.0, abs=1e-7)


def test_balance_loss_of_an_uneven_mean() -> None:
    # the first event alone: 3/4 ln(3/2) + 1/4 ln(1/2)
    only = torch.tensor([[True, False], [False, False]])
    wanted = 0.75 * math.log(1.5) - 0.25 * LN2
    assert balance_loss(LOGITS, only).item() == pytest.approx(wanted)


def test_one_row_for_all_costs_ln_m_and_has_a_gradient() -> None:
    logits = torch.tensor([[[200.0, -200.0, -200.0, -200.0]]], requires_grad=True)
    loss = balance_loss(logits, torch.tensor([[True]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4))
    assert logits.grad.isfinite().all()


def test_nothing_real_costs_nothing() -> None:
    logits = LOGITS.clone().requires_grad_()
    none = torch.zeros(2, 2, dtype=torch.bool)
    loss = peak_loss(logits, none) + balance_loss(logits, none)
    loss.backward()
    assert loss.item() == 0.0
    assert not logits.grad.any()


def test_masked_mean_keeps_the_axes_after_events() -> None:
    x = torch.arange(12.0).reshape(2, 2, 3)
    assert masked_mean(x, REAL).tolist() == [3.0, 4.0, 5.0]
    assert masked_mean(x[..., 0], REAL).item() == 3.0

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from ckv_export.contract import DnnSpec
from ckv_export.errors import SpecError
from ckv_export.model.reference import BATCH_NORM_EPS, DICE_EPS, Reference
from ckv_export.training import Clicks, demo_data, initial_state
from ckv_export.training.demo import OPTIONS
from ckv_export.training.hstu import training_model
from ckv_export.training.losses import balance_loss, peak_loss
from ckv_export.training.model import Losses, TrainingModel


@pytest.fixture
def batch(small_data) -> Clicks:
    return small_data.train.take(slice(16))


def make(spec) -> TrainingModel:
    return TrainingModel(spec, initial_state(spec, 0))


def test_the_collective_part_is_the_chosen_row_times_its_gate(small_spec, batch) -> None:
    model = make(small_spec())
    x = torch.randn(2, 7, model.spec.d_event)
    model._mask = torch.ones(2, 7, dtype=torch.bool)
    logits = x @ model.state["attention.0.k.router.weight"].T
    rows = model.state["attention.0.k.pool"][logits.argmax(-1)]
    gate = torch.sigmoid(logits.max(-1).values).unsqueeze(-1)
    torch.testing.assert_close(model._collective_part(x, 0, "k"), rows * gate)


def test_a_gradient_reaches_the_router_through_the_gate_alone(small_spec, batch) -> None:
    model = make(small_spec())
    model.losses(batch).click.backward()
    for side in ("k", "v"):
        gradient = model.state[f"attention.0.{side}.router.weight"].grad
        events = model.embed(model.spec.item_features, batch.history)[:, -11:][batch.mask[:, -11:]]
        logits = events @ model.state[f"attention.0.{side}.router.weight"].T
        # rows that no event chose stand still
        chosen = logits.argmax(-1).unique()
        assert gradient[chosen].any(dim=1).all()
        assert gradient.any(dim=1).sum() == len(chosen)


def test_router_losses_are_means_over_the_pools_and_the_windows_real_events(
    small_spec, batch
) -> None:
    model = make(small_spec())
    losses = model.losses(batch)
    events = model.embed(model.spec.item_features, batch.history)[:, -11:]
    logits = [events @ model.state[f"attention.0.{s}.router.weight"].T for s in ("k", "v")]
    for loss, function in ((losses.peak, peak_loss), (losses.balance, balance_loss)):
        wanted = sum(function(part, batch.mask[:, -11:]) for part in logits) / 2
        torch.testing.assert_close(loss, wanted)


def test_a_side_without_a_pool_has_no_router_loss(small_spec, batch) -> None:
    spec = small_spec()
    attention = dataclasses.replace(spec.attention, user_v=16, pool_rows_v=0)
    model = make(dataclasses.replace(spec, attention=attention))
    model.losses(batch).total(1.0, 1.0).backward()
    assert len(model._router_losses) == 1


def test_the_total_is_weighted() -> None:
    losses = Losses(*(torch.tensor(x) for x in (1.0, 10.0, 100.0, 1000.0)))
    assert losses.total(alpha=0.5, beta=0.25).item() == 1.0 + 5.0 + 25.0 + 1000.0


def test_running_statistics_move_as_torch_moves_them(small_spec, batch) -> None:
    model = make(small_spec())
    norm = nn.BatchNorm1d(16, eps=BATCH_NORM_EPS)
    for x in torch.randn(3, 20, 16) * 3 + 1:
        torch.testing.assert_close(model._batch_norm(x, 0), norm(x))
    torch.testing.assert_close(model.state["dnn.0.norm.mean"], norm.running_mean)
    torch.testing.assert_close(model.state["dnn.0.norm.var"], norm.running_var)


def test_dice_normalises_by_the_batch_too(small_spec) -> None:
    dnn = DnnSpec((16,), ("dice",), batch_norm=False)
    model = make(dataclasses.replace(small_spec(), dnn=dnn))
    norm = nn.BatchNorm1d(16, eps=DICE_EPS, affine=False)
    x = torch.randn(20, 16) + 2
    torch.testing.assert_close(model.dnn_activation(x, 0), torch.sigmoid(norm(x)) * x)
    torch.testing.assert_close(model.state["dnn.0.activation.mean"], norm.running_mean)


def test_the_given_state_and_one_that_was_taken_are_left_alone(small_spec, batch) -> None:
    state = initial_state(small_spec(), 0)
    before = {name: tensor.clone() for name, tensor in state.items()}
    model = TrainingModel(small_spec(), state)
    copy = model.trained_state()
    model.losses(batch)
    assert all(torch.equal(before[n], state[n]) for n in state)
    assert all(torch.equal(before[n], copy[n]) for n in state)


def test_the_search_learns_though_no_gradient_passes_its_selection(small_spec, batch) -> None:
    model = make(small_spec())
    losses = model.losses(batch)
    names = ("long.gsu_target.weight", "long.gsu_event.weight")
    weights = [model.state[name] for name in names]
    assert torch.autograd.grad(losses.click, weights, retain_graph=True, allow_unused=True) == (
        None,
        None,
    )
    assert all(g.any() for g in torch.autograd.grad(losses.search, weights))


@pytest.mark.parametrize("real", [0, 1, 7])
def test_the_search_logit_is_the_mean_relevance_of_real_events(
    small_spec, small_data, real: int
) -> None:
    """0 where none is."""
    model, clicks = make(small_spec()), small_data.train
    one = clicks.take(torch.where(clicks.mask.sum(1) == real)[0][:1])
    events = model.embed(model.spec.item_features, one.history)[one.mask]
    targets = model.embed(model.spec.item_features, one.candidates)[0]
    relevance = (targets @ model.state["long.gsu_target.weight"].T) @ (
        events @ model.state["long.gsu_event.weight"].T
    ).T
    logits = relevance.mean(1) if real else torch.zeros(len(targets))
    wanted = nn.functional.binary_cross_entropy_with_logits(logits, one.label[0])
    torch.testing.assert_close(model._search_loss(one), wanted)


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_kind_learns_all_but_what_is_fixed(small_spec, kind: str) -> None:
    model = training_model(small_spec(kind), initial_state(small_spec(kind), 0))
    data = demo_data(small_spec(kind), 0, train=16, held_out=1, candidates=2)
    model.losses(data.train).total(0.1, 0.1).backward()
    still = {n for n, t in model.state.items() if t.grad is None or not t.grad.any()}
    assert still == {n for n in model.state if n.endswith((".rotations", ".mean", ".var"))}


def test_with_open_gates_and_settled_statistics_training_is_inference(small_spec, batch) -> None:
    spec = small_spec()
    plain = dataclasses.replace(spec, dnn=dataclasses.replace(spec.dnn, batch_norm=False))
    attention = dataclasses.replace(plain.attention, router_bias=True)
    plain = dataclasses.replace(plain, attention=attention)
    state = initial_state(plain, 0)
    for side in ("k", "v"):
        state[f"attention.0.{side}.router.bias"] += 100.0
    asked = batch.history, batch.mask, batch.candidates, batch.user
    trained, inferred = (kind(plain, state).score(*asked) for kind in (TrainingModel, Reference))
    torch.testing.assert_close(trained, inferred)


def test_a_regression_is_refused(small_spec) -> None:
    spec = small_spec()
    spec = dataclasses.replace(spec, dnn=dataclasses.replace(spec.dnn, sigmoid=False))
    with pytest.raises(SpecError, match=r"dnn\.sigmoid must be true"):
        make(spec)

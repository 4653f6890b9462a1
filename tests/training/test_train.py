from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.errors import SpecError
from ckv_export.model.parameters import check_state
from ckv_export.model.reference import Reference
from ckv_export.training import (
    ClickData,
    TrainingSettings,
    demo,
    demo_spec,
    initial_state,
    train,
    train_demo,
)
from ckv_export.training.evaluate import auc, rows_used
from ckv_export.training.hstu import training_model


def test_the_loss_falls_and_held_out_clicks_are_told_apart(run) -> None:
    losses = run.report.epoch_losses
    assert len(losses) == 4
    assert losses[-1] < 0.9 * losses[0]
    assert run.report.valid_auc > 0.65


def test_events_spread_over_the_pool(run) -> None:
    assert run.report.pool_rows == {"k": 24, "v": 24}
    assert all(8 <= used <= 24 for used in run.report.rows_used.values())


def test_every_tenth_step_and_the_last_are_reported(run) -> None:
    assert [step for step, _, _ in run.progress] == [10, 20, 30, 40, 50, 60, 70, 72]
    assert {steps for _, steps, _ in run.progress} == {72}
    assert all(math.isfinite(loss) for _, _, loss in run.progress)


def test_padding_stays_zero(run) -> None:
    tables = [name for name in run.state if name.endswith(".table")]
    assert len(tables) == 4
    assert not any(run.state[name][0].any() for name in tables)


def test_every_tensor_that_learns_has_moved(small_spec, run) -> None:
    start = initial_state(small_spec(), 3)
    assert not [name for name in start if torch.equal(start[name], run.state[name])]


def test_the_state_is_a_models_and_scores_even_an_empty_history(
    small_spec, small_data, run
) -> None:
    check_state(small_spec(), run.state)
    clicks = small_data.held_out
    empty = clicks.take(clicks.mask.sum(1) == 0)
    assert len(empty) > 0
    score = Reference(small_spec(), run.state).score(
        empty.history, empty.mask, empty.candidates, empty.user
    )
    assert score.isfinite().all()
    assert not any(t.requires_grad for t in run.state.values())


def test_the_seed_decides_and_no_global_generator_does(small_spec, small_data) -> None:
    few = type(small_data)(small_data.train.take(slice(200)), small_data.held_out)
    torch.manual_seed(1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    once = train(small_spec(), few, epochs=1, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    torch.manual_seed(2)
    again, other = (train(small_spec(), few, epochs=1, seed=seed) for seed in (5, 6))
    assert all(torch.equal(once[0][name], again[0][name]) for name in once[0])
    assert once[1].epoch_losses == again[1].epoch_losses
    assert other[1].epoch_losses != once[1].epoch_losses


def test_training_is_adam_over_batches_in_a_drawn_order(small_spec, small_data) -> None:
    """Two epochs of two batches of 8, which leave 4 of 20 histories out; on one thread."""
    spec, clicks = small_spec(), small_data.train.take(slice(20))
    settings = TrainingSettings(batch_size=8, learning_rate=0.01, alpha=0.3, beta=0.7)
    data, seen = ClickData(clicks, small_data.held_out.take(slice(2))), []

    def progress(step: int, steps: int, loss: float) -> None:
        seen.append((step, steps, loss, torch.get_num_threads()))

    torch.set_num_threads(2)
    try:
        state, report = train(spec, data, epochs=2, seed=5, settings=settings, progress=progress)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    model, generator = training_model(spec, initial_state(spec, 5)), torch.Generator()
    generator.manual_seed(5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    tables = [tensor for name, tensor in model.state.items() if name.endswith(".table")]
    losses = []
    for _ in range(2):
        order = torch.randperm(20, generator=generator)
        for rows in (order[:8], order[8:16]):
            loss = model.losses(clicks.take(rows)).total(0.3, 0.7)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for table in tables:
                table.data[0] = 0.0
            losses.append(loss.item())
    wanted = model.trained_state()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    means = (losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2
    assert report.epoch_losses == pytest.approx(means)
    assert seen == [(4, 4, losses[-1], 1)]
    used = rows_used(spec, state, data.held_out)
    assert report.rows_used == used != rows_used(spec, state, clicks)
    assert 0 < report.seconds < 60


@pytest.mark.parametrize(
    ("score", "label", "wanted"),
    [
        ([[0.9, 0.1], [0.8, 0.2]], [[1, 0], [1, 0]], 1.0),
        ([0.1, 0.9], [1, 0], 0.0),
        ([0.5, 0.5, 0.5], [1, 0, 0], 0.5),
        ([0.5, 0.5, 0.1, 0.7], [1, 0, 0, 1], 0.875),  # of four pairs three and a half
    ],
)
def test_auc(score, label, wanted: float) -> None:
    assert auc(torch.tensor(score), torch.tensor(label)) == pytest.approx(wanted)


def test_auc_of_one_kind_of_label_is_unknown() -> None:
    assert math.isnan(auc(torch.tensor([0.1, 0.2]), torch.tensor([1, 1])))


def test_a_demo_is_saved_beside_its_held_out_events(
    small_spec, small_data, tmp_path, monkeypatch
) -> None:
    few = type(small_data)(small_data.train.take(slice(64)), small_data.held_out)
    monkeypatch.setattr(demo, "demo_spec", small_spec)
    monkeypatch.setattr(demo, "demo_data", lambda spec, seed: {2: few}[seed])
    asked = []
    monkeypatch.setattr(demo, "train", lambda *a, **how: asked.append(how) or train(*a, **how))
    progress = []
    report = train_demo(
        "sim", tmp_path / "model.pt", seed=2, progress=lambda *p: progress.append(p)
    )
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert [how["seed"] for how in asked] == [2]
    assert [step for step, _, _ in progress] == [demo.EPOCHS]  # a batch in each
    assert loaded.spec == small_spec()
    assert len(report.epoch_losses) == demo.EPOCHS
    with np.load(tmp_path / "events.npz") as file:
        np.testing.assert_array_equal(file["label"], few.held_out.label)


def test_an_unknown_demo_is_refused() -> None:
    with pytest.raises(SpecError, match=r"sim, eta, sdim, twin, hstu, got .smi.; did you mean"):
        demo_spec("smi")

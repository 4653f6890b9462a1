from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.errors import SpecError
from ckv_export.model.parameters import check_state
from ckv_export.model.reference import Reference
from ckv_export.training import demo, demo_spec, initial_state, train, train_demo
from ckv_export.training.evaluate import auc


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

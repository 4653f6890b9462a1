"""The training loop: Adam over shuffled batches, then a judgement on held-out clicks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ckv_export.contract import ModelSpec
from ckv_export.training.clicks import ClickData, Clicks
from ckv_export.training.evaluate import auc, pool_rows, rows_used, scores
from ckv_export.training.hstu import training_model
from ckv_export.training.initial import initial_state, padded_tables
from ckv_export.training.model import TrainingModel

Progress = Callable[[int, int, float], None]
REPORT_EVERY = 10


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained; `alpha` weighs the router's peak loss, `beta` its load balance."""

    batch_size: int = 64
    learning_rate: float = 3e-3
    alpha: float = 0.1
    beta: float = 0.1


DEFAULTS = TrainingSettings()


@dataclass(frozen=True)
class TrainingReport:
    """What came of a run.

    `epoch_losses`: mean total loss of each epoch. `valid_auc`: on the held-out clicks.
    `rows_used`: per side with a pool, the rows that held-out events are routed to, out of
    `pool_rows`. `seconds`: wall time, the judgement included.
    """

    epoch_losses: tuple[float, ...]
    valid_auc: float
    seconds: float
    rows_used: Mapping[str, int]
    pool_rows: Mapping[str, int]


def train(
    spec: ModelSpec,
    data: ClickData,
    *,
    epochs: int,
    seed: int,
    progress: Progress | None = None,
    settings: TrainingSettings = DEFAULTS,
) -> tuple[dict[str, Tensor], TrainingReport]:
    """Train a model of `spec` from scratch: its native state and what came of it.

    The same seed and data give the same state on the same machine; torch's global generator is
    neither read nor moved. `progress(step, steps, loss)` is called every 10 batches and at the
    end. A last batch that is not full is left out of its epoch. Raises `SpecError` for a model
    without a sigmoid.
    """
    started = time.perf_counter()
    with _one_thread():
        model = training_model(spec, initial_state(spec, seed))
        losses = _learn(model, data.train, epochs, seed, progress, settings)
        state = model.trained_state()
        score = scores(spec, state, data.held_out)
        used = rows_used(spec, state, data.held_out)
    return state, TrainingReport(
        epoch_losses=tuple(sum(epoch) / len(epoch) for epoch in losses),
        valid_auc=auc(score, data.held_out.label),
        seconds=time.perf_counter() - started,
        rows_used=used,
        pool_rows=pool_rows(spec),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small gain little from a second thread, and lose much where it is contended.

    The order of additions, so the state, then depends on no number of threads either.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _learn(
    model: TrainingModel,
    clicks: Clicks,
    epochs: int,
    seed: int,
    progress: Progress | None,
    settings: TrainingSettings,
) -> list[list[float]]:
    """Total loss of every step, an epoch each list."""
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    size = min(settings.batch_size, len(clicks))
    each = len(clicks) // size
    losses: list[list[float]] = []
    for epoch in range(epochs):
        losses.append([])
        order = torch.randperm(len(clicks), generator=generator)[: each * size]
        for step, batch in enumerate(clicks.batches(size, order), epoch * each + 1):
            losses[-1].append(_step(model, optimizer, batch, settings))
            if progress and (step % REPORT_EVERY == 0 or step == epochs * each):
                progress(step, epochs * each, losses[-1][-1])
    return losses


def _step(
    model: TrainingModel,
    optimizer: torch.optim.Optimizer,
    batch: Clicks,
    settings: TrainingSettings,
) -> float:
    optimizer.zero_grad()
    loss = model.losses(batch).total(settings.alpha, settings.beta)
    loss.backward()
    for name in padded_tables(model.state):
        gradient = model.state[name].grad
        if gradient is not None:
            gradient[0] = 0.0  # Adam never moves what has never had a gradient
    optimizer.step()
    return float(loss.detach())

"""The training loop: Adam over shuffled batches, then a judgement on held-out clicks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ckv_export.contract import ModelSpec
from ckv_export.training.clicks import ClickData, Clicks
from ckv_export.training.evaluate import auc, rows_used, scores
from ckv_export.training.initial import initial_state, padded_tables
from ckv_export.training.model import TrainingModel

Progress = Callable[[int, int, float], None]
REPORT_EVERY = 10


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained; `alpha` weighs the router's peak loss, `beta` its load balance."""

    batch_size: int = 128
    learning_rate: float = 3e-3
    alpha: float = 0.1
    beta: float = 0.1


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
    settings: TrainingSettings = TrainingSettings(),  # noqa: B008
) -> tuple[dict[str, Tensor], TrainingReport]:
    """Train a model of `spec` from scratch: its native state and what came of it.

    The same seed, data and number of threads give the same state; torch's global generator is
    neither read nor moved. `progress(step, steps, loss)` is called every 10 batches and at the
    end. Of the last, incomplete batch nothing is learned. Raises `SpecError` for a
    model without a sigmoid.
    """
    started = time.perf_counter()
    model = TrainingModel(spec, initial_state(spec, seed))
    losses = _run(model, data.train, epochs, seed, progress, settings)
    state = model.trained_state()
    return state, TrainingReport(
        epoch_losses=losses,
        valid_auc=auc(scores(spec, state, data.held_out), data.held_out.label),
        rows_used=(used := rows_used(spec, state, data.held_out)),
        pool_rows={side: spec.attention.pool_rows(side) for side in used},
        seconds=time.perf_counter() - started,
    )


def _run(
    model: TrainingModel,
    clicks: Clicks,
    epochs: int,
    seed: int,
    progress: Progress | None,
    settings: TrainingSettings,
) -> tuple[float, ...]:
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    size = min(settings.batch_size, len(clicks))
    each = len(clicks) // size
    losses: list[float] = []
    for _ in range(epochs):
        order = torch.randperm(len(clicks), generator=generator)[: each * size]
        for batch in clicks.batches(size, order):
            losses.append(_step(model, optimizer, batch, settings))
            if progress and (len(losses) % REPORT_EVERY == 0 or len(losses) == epochs * each):
                progress(len(losses), epochs * each, losses[-1])
    return tuple(sum(losses[e * each :][:each]) / each for e in range(epochs))


def _step(
    model: TrainingModel,
    optimizer: torch.optim.Optimizer,
    batch: Clicks,
    settings: TrainingSettings,
) -> float:
    optimizer.zero_grad()
    loss = model.losses(batch).total(settings.alpha, settings.beta)
    loss.backward()  # type: ignore[no-untyped-call]
    for name in padded_tables(model.state):
        gradient = model.state[name].grad
        if gradient is not None:
            gradient[0] = 0.0  # Adam never moves what has never had a gradient
    optimizer.step()
    return float(loss.detach())

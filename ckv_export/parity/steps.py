"""Many requests one after another: does the error of a cache that is only appended to grow?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ckv_export.contract import ModelSpec
from ckv_export.errors import InputError
from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.inputs import Case
from ckv_export.parity.replay import decode_feeds, kept, prefill_feeds
from ckv_export.parity.routing import ScoreErrors, score_errors
from ckv_export.parity.truth import cut
from ckv_export.runtimes.base import Arrays, Runner


@dataclass(frozen=True)
class StepResult:
    """One request: `events` in all after it; rows returned that differ; errors of its scores.

    `user_error`: largest of the user parts that it returned, None where one isn't finite.
    """

    events: int
    flips: int
    user_error: float | None
    score: ScoreErrors


@dataclass(frozen=True)
class StepsReport:
    """Requests in order, each appending `appended` events; `truth`: what each is compared with."""

    case: str
    users: int
    first_events: int
    appended: int
    truth: str
    steps: tuple[StepResult, ...]

    @property
    def growth(self) -> float | None:
        """Slope of the mean score error per step, a least-squares line; None for one step."""
        errors = [s.score.mean for s in self.steps]
        if len(errors) < 2 or None in errors:
            return None
        return float(np.polyfit(np.arange(len(errors)), np.array(errors, np.float64), 1)[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self) | {"growth": self.growth}


def plan(cases: Sequence[Case], steps: int) -> list[Case]:
    """The longest case, cut into a history and `steps` requests of one event each and more.

    Raises `InputError` where no case has so many events.
    """
    longest = max(cases, key=lambda c: (c.cached + c.appended, c.inputs["history_mask"].sum()))
    events = longest.cached + longest.appended
    if events < steps:
        raise InputError(
            f"--steps must be at most {events}, the events of the longest case, got {steps}"
        )
    # Half of the events at most go into the steps, unless one each needs more.
    each = max(1, events // (2 * steps))
    first = events - each * steps
    return [cut(longest, 0, first + number * each, each) for number in range(steps)]


def many_steps(
    spec: ModelSpec, prefill: Runner, decode: Runner, expected: Sequence[ExpectedCase], truth: str
) -> StepsReport:
    """Prefill the first history; then decode step after step, writing back what it returns.

    `expected`: the cases of `plan`, each recomputed in full.
    """
    start = expected[0]
    results = []
    with prefill, decode:
        history = slice(0, start.case.cached)
        cache = prefill.infer(prefill_feeds(prefill.io, start, history))
        for step in expected:
            got = decode.infer(decode_feeds(decode.io, step, kept(spec, cache)))
            results.append(_compared(step, got))
            cache = _written_back(cache, got)
    return StepsReport(
        start.case.name,
        start.case.inputs["history_mask"].shape[0],
        start.case.cached,
        start.case.appended,
        truth,
        tuple(results),
    )


def _written_back(cache: Arrays, got: Arrays) -> Arrays:
    return {
        name: np.concatenate([array, got[name.replace("cache_", "append_", 1)]], axis=2)
        for name, array in cache.items()
    }


def _compared(step: ExpectedCase, got: Arrays) -> StepResult:
    flips, errors = 0, [0.0]
    for name, array in got.items():
        expected = step.outputs[name]
        if name.endswith("_index"):
            flips += int((array != expected).sum())
        elif name.endswith("_user"):
            difference = np.abs(array.astype(np.float64) - expected.astype(np.float64))
            errors.append(float(difference.max(initial=0.0)))
    events = step.case.cached + step.case.appended
    scores = score_errors([(got["score"], step.outputs["score"])])
    error = max(errors) if np.isfinite(errors).all() else None
    return StepResult(events, flips, error, scores)

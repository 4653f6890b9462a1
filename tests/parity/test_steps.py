"""Requests one after another, each writing back what it returned."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ckv_testing.exports import Export
from ckv_testing.runs import Tampered, rounded

from ckv_export.contract import FEATURES
from ckv_export.errors import InputError
from ckv_export.model.registry import build_reference
from ckv_export.parity.routing import ScoreErrors
from ckv_export.parity.steps import StepResult, StepsReport, many_steps, plan
from ckv_export.parity.tolerances import TOLERANCES
from ckv_export.parity.truth import ReferenceTruth

pytestmark = pytest.mark.usefixtures("one_thread")

Exported = Callable[[str], Export]


def planned(made: Export, steps: int):
    truth = ReferenceTruth(build_reference(made.spec, made.state), FEATURES, "it")
    return truth.record(plan([c.case for c in made.cases], steps))


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_plan_is_the_longest_case_bit_by_bit(steps: int, exported: Exported):
    cases = [c.case for c in exported("sim").cases]
    longest = max(c.cached + c.appended for c in cases)
    parts = plan(cases, steps)
    assert len(parts) == steps
    ends = [p.cached + p.appended for p in parts]
    assert ends[-1] == longest, "the last request sees every event"
    assert {p.appended for p in parts} == {max(1, longest // (2 * steps))}
    assert [p.cached for p in parts[1:]] == ends[:-1]


def test_more_steps_than_events(exported: Exported):
    cases = [c.case for c in exported("sim").cases]
    longest = max(c.cached + c.appended for c in cases)
    assert plan(cases, longest)[0].cached == 0, "from nothing at all"
    with pytest.raises(InputError, match=f"at most {longest}.*got {longest + 1}"):
        plan(cases, longest + 1)


@pytest.mark.parametrize("kind", ["sim", "twin"])
def test_right_runtime_stays_right(kind: str, exported: Exported):
    made = exported(kind)
    expected = planned(made, 6)
    report = many_steps(made.spec, *made.torch_runners(), expected, "it")
    assert len(report.steps) == 6
    assert report.steps[-1].events == expected[-1].case.cached + expected[-1].case.appended
    for step in report.steps:
        assert step.flips == 0
        assert step.score.max < 1e-5
        assert step.user_error < 1e-5
    assert abs(report.growth) < 1e-6


def test_own_entries_are_fed_back(exported: Exported):
    """A runtime that returns wrong entries scores the next request, not this one, wrongly."""
    made = exported("sim")
    prefill, decode = made.torch_runners()

    def spoil(arrays) -> None:
        arrays["append_v_user"] += np.float32(1)

    report = many_steps(made.spec, prefill, Tampered(decode, outputs=spoil), planned(made, 4), "it")
    allowed = TOLERANCES["score"].absolute
    assert report.steps[0].score.max < allowed
    assert all(step.score.max > allowed for step in report.steps[1:])
    assert [step.user_error for step in report.steps] == pytest.approx([1.0] * 4, abs=1e-4)


def test_user_parts_that_are_no_numbers_are_no_small_error(exported: Exported):
    made = exported("sim")
    prefill, decode = made.torch_runners()

    def spoil(arrays) -> None:
        arrays["append_k_user"][0, 0, 0] = np.nan

    report = many_steps(made.spec, prefill, Tampered(decode, outputs=spoil), planned(made, 2), "it")
    assert [step.user_error for step in report.steps] == [None, None]


def test_flips_of_each_step_are_counted(exported: Exported):
    made = exported("sim")
    prefill, decode = made.torch_runners()
    expected = planned(made, 3)

    def flip(arrays) -> None:
        arrays["append_k_index"][0, 0, 0] = (arrays["append_k_index"][0, 0, 0] + 1) % 10

    report = many_steps(made.spec, prefill, Tampered(decode, outputs=flip), expected, "it")
    assert [step.flips for step in report.steps] == [1, 1, 1]


def test_rounded_entries_cost_something_at_every_step(exported: Exported):
    made = exported("sim")
    prefill, decode = (Tampered(r, outputs=rounded) for r in made.torch_runners())
    report = many_steps(made.spec, prefill, decode, planned(made, 5), "it")
    assert all(1e-6 < step.score.max < 1e-2 for step in report.steps)


def steps_of(errors: list[float | None]) -> StepsReport:
    scores = [ScoreErrors(1, e, e, e, e) for e in errors]
    return StepsReport(
        "c", 1, 0, 1, "t", tuple(StepResult(n, 0, 0.0, s) for n, s in enumerate(scores))
    )


def test_growth_is_the_slope():
    assert steps_of([1.0, 3.0, 5.0]).growth == pytest.approx(2.0)
    assert steps_of([2.0, 2.0]).growth == pytest.approx(0.0)
    assert steps_of([1.0]).growth is None
    assert steps_of([1.0, None]).growth is None

"""What is wrong is not timed; what can't run is left out, with the reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ckv_testing.draw import make_spec

from ckv_export.bench.agreement import agreement
from ckv_export.bench.ways import Origin
from ckv_export.errors import EngineError, ParityFailure

SPEC = make_spec("sim")
TRUTH = np.linspace(0, 1, 200, dtype=np.float32).reshape(2, 100)


class Served:
    """A way that answers with one after another of `answers`, a number to add or an error."""

    def __init__(self, name: str, *answers: Any, precision: str = "fp32") -> None:
        self.way: Any = SimpleNamespace(
            name=name, origin=Origin(name, precision), settles=len(answers), first_call_seconds=0.0
        )
        self.spec, self.answers = SPEC, list(answers)

    def score(self) -> np.ndarray:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return TRUTH + np.float32(answer)


def check(*served: Any, floats: str = "fp32", expected: np.ndarray | None = TRUTH) -> Any:
    return agreement(served, floats, expected)


def test_every_call_until_a_way_has_settled_is_compared():
    found = check(Served("a", 0), Served("b", 0, 1e-6, 0))
    assert found.errors["a"] == 0
    assert found.errors["b"] == pytest.approx(1e-6, rel=0.1)
    with pytest.raises(ParityFailure, match=r"^b: 100\.0% of the scores differ"):
        check(Served("a", 0), Served("b", 0, 0, 1e-3))


def test_one_score_in_a_hundred_may_be_a_near_tie():
    one, many = np.zeros((2, 100)), np.zeros((2, 100))
    one[0, :2] = many[0, :3] = 0.3
    assert check(Served("a", 0), Served("b", one)).errors["b"] == pytest.approx(0.3, rel=1e-3)
    with pytest.raises(ParityFailure):
        check(Served("a", 0), Served("b", many))


def test_a_score_that_is_none_is_no_near_tie():
    one = np.zeros((2, 100))
    one[0, 0] = np.nan
    with pytest.raises(ParityFailure, match=r"^b: 0\.5% of the scores .* by nan"):
        check(Served("a", 0), Served("b", one))


def test_the_first_call_is_timed_alone(monkeypatch: pytest.MonkeyPatch):
    served = Served("a", 0, 0, 0)
    left = len(served.answers)
    clock = SimpleNamespace(perf_counter=lambda: float(left - len(served.answers)))
    monkeypatch.setattr("ckv_export.bench.agreement.time", clock)
    check(served)
    assert served.way.first_call_seconds == 1


@pytest.mark.parametrize("error", [EngineError("no such shape"), EngineError("no capture")])
def test_a_way_that_cannot_run_is_left_out(error: EngineError):
    served = [Served("a", 0), Served("b", 0, error), Served("c", 0)]
    found = check(*served)
    assert [(w.name, w.reason) for w in found.failed] == [("b", str(error))]
    assert [one.way.name for one in found.kept(served)] == ["a", "c"]
    with pytest.raises(EngineError):
        check(Served("a", error), Served("b", 0))


def test_half_precision_anywhere_is_checked_for_mistakes_alone():
    full, half = Served("a", 0), Served("b", 0.01, precision="fp16")
    assert check(full, half).errors["b"] == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(ParityFailure, match="b: "):
        check(Served("a", 0), Served("b", 0.03, precision="fp16"))
    with pytest.raises(ParityFailure, match="c: "):
        check(Served("a", 0), Served("b", 0, precision="fp16"), Served("c", 0.01))
    check(Served("a", 0.01), Served("b", 0), floats="fp16")
    # The first made the cache that the others read.
    check(Served("a", 0.01, precision="fp16"), Served("b", 0.01))


def test_without_a_reference_the_first_is_believed():
    found = check(Served("a", 0.5), Served("b", 0.5), expected=None)
    assert found.errors == {"a": 0, "b": 0}
    with pytest.raises(ParityFailure, match="b: "):
        check(Served("a", 0.5), Served("b", 0), expected=None)

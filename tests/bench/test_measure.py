"""Calls timed in turn, in a time of the test's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ckv_export.bench.measure import Settings, Timing, in_turn


class Simulated:
    """Time, and calls that take the durations they are told, the last of them from then on."""

    def __init__(self) -> None:
        self.time = 0.0
        self.seen: list[str] = []

    def clock(self) -> float:
        return self.time

    def call(self, name: str, *durations: float) -> Callable[[], None]:
        def lasting() -> Iterator[float]:
            yield from durations
            while True:
                yield durations[-1]

        durations_left = lasting()

        def run() -> None:
            self.seen.append(name)
            self.time += next(durations_left)

        return run


def test_calls_take_turns_and_none_is_forgotten():
    now, seen = [0.0], []

    def call(name: str, seconds: float):
        def run() -> None:
            seen.append(name)
            now[0] += seconds

        return run

    settings = Settings(warmup=2, window=3, seconds=1e6, least=4)
    timings = in_turn({"a": call("a", 1.0), "b": call("b", 3.0)}, settings, lambda: now[0])
    assert seen == ["a", "b"] * (2 + 3 * 4)
    assert timings["a"].windows == [[1.0] * 3] * 4
    assert timings["b"].to_dict(6)["per_second"] == 2.0
    assert timings["a"].stable


def test_time_ends_what_never_is_stable(rng: np.random.Generator):
    now = [0.0]

    def call() -> None:
        now[0] += 1.0 + len(str(now[0])) * rng.random()

    timings = in_turn({"a": call}, Settings(0, 2, tolerance=1e-9, seconds=50), lambda: now[0])
    assert not timings["a"].stable
    assert 50 <= now[0] < 100
    assert in_turn({}, Settings()) == {}


def test_what_the_first_calls_take_is_neither_counted_nor_of_the_time():
    """A compilation of a minute in the warm-up leaves all of the ten seconds."""
    simulated = Simulated()
    calls = {"a": simulated.call("a", 60.0, 1.0)}
    settings = Settings(warmup=1, window=2, tolerance=1e-9, seconds=10.0, least=4)
    timings = in_turn(calls, settings, simulated.clock)
    assert timings["a"].windows == [[1.0, 1.0]] * 4


def test_one_window_is_complete_however_slow_the_calls_are():
    simulated = Simulated()
    calls = {name: simulated.call(name, 100.0) for name in "ab"}
    timings = in_turn(calls, Settings(warmup=0, window=3, seconds=1.0), simulated.clock)
    for timing in timings.values():
        assert timing.windows == [[100.0] * 3]
        assert not timing.stable, "one window says nothing of the next"


def test_a_call_that_is_not_stable_keeps_all_of_them_going():
    """The windows of b agree from the sixth on: the eighth is the third that does."""
    simulated = Simulated()
    slower = [float(10 + 5 * i) for i in range(5)]
    b = simulated.call("b", *(seconds for seconds in slower for _ in range(2)), 100.0)
    calls = {"a": simulated.call("a", 1.0), "b": b}
    settings = Settings(warmup=0, window=2, tolerance=0.03, seconds=1e6)
    timings = in_turn(calls, settings, simulated.clock)
    assert [len(t.windows) for t in timings.values()] == [8, 8]
    assert all(t.stable for t in timings.values())


@pytest.mark.parametrize(("tolerance", "windows"), [(0.25, 3), (0.15, 4), (0.05, 5)])
def test_how_near_is_near_is_what_the_settings_say(tolerance: float, windows: int):
    simulated = Simulated()
    calls = {"a": simulated.call("a", 1.0, 1.1, 1.2)}
    settings = Settings(warmup=0, window=1, tolerance=tolerance, seconds=1e6)
    assert len(in_turn(calls, settings, simulated.clock)["a"].windows) == windows


def test_a_timing_in_numbers(rng: np.random.Generator):
    windows = rng.uniform(0.001, 0.1, (13, 8)).tolist()
    told = Timing(windows, stable=True).to_dict(each=5)
    samples = sorted(1000 * s for w in windows for s in w)
    assert told["calls"] == 104
    assert told["p50_ms"] == pytest.approx((samples[51] + samples[52]) / 2, abs=1e-4)
    assert told["p90_ms"] == pytest.approx(samples[math.ceil(0.9 * 104) - 1], abs=1e-4)
    assert told["p99_ms"] == pytest.approx(samples[102], abs=1e-4)
    assert told["mean_ms"] == pytest.approx(math.fsum(samples) / 104, abs=1e-4)
    assert told["per_second"] == pytest.approx(5 * 1000 * 104 / math.fsum(samples), rel=1e-4)
    assert told["stable"] is True
    in_ms = 1000 * np.array(windows)
    np.testing.assert_allclose(told["windows_ms"], in_ms, atol=1e-4)


def test_p99_of_few_calls_is_the_slowest():
    told = Timing([[0.001] * 7 + [0.05]]).to_dict(1)
    assert (told["p50_ms"], told["p90_ms"], told["p99_ms"]) == (1.0, 50.0, 50.0)

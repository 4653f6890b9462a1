"""Percentiles, stability and verdicts on samples whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ckv_export.bench.measure import Settings, in_turn
from ckv_export.bench.statistics import is_stable, percentile, ratio_of_medians


@pytest.mark.parametrize("percent", [1, 50, 90, 99, 100])
@pytest.mark.parametrize("size", [1, 2, 10, 100, 101])
def test_percentile_is_the_nearest_rank(percent: int, size: int, rng: np.random.Generator):
    samples = rng.random(size).tolist()
    rank = max(1, math.ceil(size * percent / 100))
    assert percentile(samples, percent) == sorted(samples)[rank - 1]


def test_stability_needs_three_windows_that_agree():
    assert not is_stable([[1.0]] * 2, 0.03)
    assert is_stable([[9.0], [1.0, 5.0, 1.0], [1.02], [1.03]], 0.03)
    assert not is_stable([[1.0], [1.02], [1.04]], 0.03)


def windows(rng: np.random.Generator, typical: float, drift: float, count: int = 12) -> list:
    """Windows of 8 samples; each window as a whole is off by a share of `drift`."""
    return [
        (typical * (1 + drift * rng.standard_normal()) * rng.uniform(0.99, 1.01, 8)).tolist()
        for _ in range(count)
    ]


def verdicts(rng: np.random.Generator, factor: float, drift: float) -> list[str]:
    return [
        ratio_of_medians(windows(rng, 10, drift), windows(rng, 10 * factor, drift)).verdict(0.05)
        for _ in range(20)
    ]


def test_a_clear_change_is_told_from_none(rng: np.random.Generator):
    assert set(verdicts(rng, 1.2, 0.005)) == {"slower"}
    assert set(verdicts(rng, 1 / 1.2, 0.005)) == {"faster"}
    assert set(verdicts(rng, 1.0, 0.005)) == {"same"}


def test_what_a_noisy_machine_may_do_by_itself_is_no_regression(rng: np.random.Generator):
    """Windows off by 15% as a whole: samples in plenty, but one tells nothing of the next window's.

    A test that took all samples as independent would call nearly every second pair different.
    """
    assert verdicts(rng, 1.0, 0.15).count("slower") <= 2


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

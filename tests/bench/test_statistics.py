"""Percentiles, stability and verdicts on samples whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ckv_export.bench.statistics import (
    RatioInterval,
    is_stable,
    median,
    percentile,
    ratio_of_medians,
)


@pytest.mark.parametrize("percent", [1, 50, 90, 99, 100])
@pytest.mark.parametrize("size", [1, 2, 10, 100, 101])
def test_percentile_is_the_nearest_rank(percent: int, size: int, rng: np.random.Generator):
    samples = rng.random(size).tolist()
    rank = max(1, math.ceil(size * percent / 100))
    assert percentile(samples, percent) == sorted(samples)[rank - 1]


def test_median_of_an_even_number_is_halfway():
    assert median([4.0, 1.0, 2.0, 9.0]) == 3.0
    assert median([5.0]) == 5.0


def test_stability_needs_three_windows_that_agree():
    assert not is_stable([[1.0]] * 2, 0.03)
    assert is_stable([[9.0], [1.0, 5.0, 1.0], [1.02], [1.03]], 0.03)
    assert not is_stable([[1.0], [1.02], [1.04]], 0.03)
    assert not is_stable([[1.04], [1.02], [1.0]], 0.03)


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


def test_the_interval_is_that_of_a_bootstrap_of_windows(rng: np.random.Generator):
    """By a loop: as many windows as there are, drawn anew each time, and the median of them all."""
    old, new = windows(rng, 10, 0.05, count=30), windows(rng, 12, 0.05, count=50)

    def drawn(of: list) -> float:
        return float(np.median([s for i in rng.integers(0, len(of), len(of)) for s in of[i]]))

    ratios = sorted(drawn(new) / drawn(old) for _ in range(2000))
    found = ratio_of_medians(old, new)
    flat = [[s for w in of for s in w] for of in (old, new)]
    assert found.ratio == pytest.approx(float(np.median(flat[1]) / np.median(flat[0])))
    assert found.low == pytest.approx(ratios[10], rel=0.015)
    assert found.high == pytest.approx(ratios[-11], rel=0.015)


def test_one_window_has_a_ratio_and_no_noise_to_tell_it_from():
    found = ratio_of_medians([[1.0, 2.0, 3.0]], [[3.0, 3.0, 9.0]])
    assert (found.low, found.ratio, found.high) == (1.5, 1.5, 1.5)


def test_the_interval_holds_the_ratio_however_long_the_windows_are():
    """The last window of a run that was cut off may be shorter."""
    steady, slow_start = [[5.0] * 4] * 3, [[5.0, 1.0, 1.0, 1.0], [5.0, 1.0, 1.0, 1.0], [5.0]]
    for old, new, ratio in ((steady, slow_start, 0.2), (slow_start, steady, 5.0)):
        found = ratio_of_medians(old, new)
        assert found.low <= found.ratio == ratio <= found.high


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.051, 1.2, "slower"),
        (1.05, 1.2, "same"),
        (0.9, 1.2, "same"),
        (0.8, 1 / 1.05, "same"),
        (0.8, 0.952, "faster"),
    ],
)
def test_only_what_lies_wholly_beyond_the_margin_differs(low: float, high: float, verdict: str):
    assert RatioInterval((low + high) / 2, low, high).verdict(0.05) == verdict


@pytest.mark.parametrize(("windows", "reached"), [(7, True), (9, False)])
def test_an_end_leaves_half_a_percent_beyond_it(windows: int, reached: bool):
    """By hand: one window of 7 is most of a draw in 1.0% of all draws, one of 9 in 0.14%."""
    usual = [[1.0]] * windows
    for odd in (0.5, 2.0):
        found = ratio_of_medians(usual, [[odd], *usual[1:]])
        beyond, other = sorted((found.low, found.high), key=lambda end: abs(end - odd))
        assert (beyond, other, found.ratio) == (odd if reached else 1.0, 1.0, 1.0)

"""Errors over all cases together, against sums in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ckv_export.parity.statistics import LEAST, NOTHING, error_statistics


def slow(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    got = [float(x) for g, _ in pairs for x in g.ravel()]
    expected = [float(x) for _, e in pairs for x in e.ravel()]
    errors = [abs(g - e) for g, e in zip(got, expected, strict=True)]
    largest = max(abs(e) for e in expected)
    relative = [
        abs(g - e) / abs(e)
        for g, e in zip(got, expected, strict=True)
        if abs(e) > LEAST * largest
    ]  # fmt: skip
    dot = sum(g * e for g, e in zip(got, expected, strict=True))
    norms = [math.sqrt(sum(x * x for x in side)) for side in (got, expected)]
    found = {"elements": len(got), "cosine": dot / (norms[0] * norms[1])}
    for suffix, values in (("", errors), ("_relative", relative)):
        found |= {f"max{suffix}": max(values), f"mean{suffix}": sum(values) / len(values)}
        found[f"p99{suffix}"] = percentile(values)
    return found


def percentile(values: list[float]) -> float:
    """The 99th, between the two values around that place."""
    ordered = sorted(values)
    place = 0.99 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def test_statistics_are_those_of_loops(rng: np.random.Generator):
    shapes = [(3, 1, 5), (0, 2), (1,), (40,)]
    pairs = []
    for shape in shapes:
        expected = rng.standard_normal(shape).astype(np.float32)
        got = expected + 1e-3 * rng.standard_normal(shape).astype(np.float32)
        pairs.append((got, expected))
    pairs[0][1].ravel()[0] = 0.0
    found = error_statistics(pairs).to_dict()
    assert found == pytest.approx(slow(pairs), rel=1e-9)


def test_nothing_to_compare():
    assert error_statistics([]) == NOTHING
    assert error_statistics([(np.zeros((0, 2)), np.zeros((0, 2)))]) == NOTHING
    assert error_statistics([(np.zeros(2), np.zeros(3))]) == NOTHING, "other shapes"


def test_zeros_on_both_sides_agree_in_direction():
    found = error_statistics([(np.zeros(3), np.zeros(3))])
    assert (found.max, found.cosine, found.max_relative) == (0.0, 1.0, None)
    assert error_statistics([(np.ones(3), np.zeros(3))]).cosine == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_number_stands_for_what_is_none(bad: float):
    for pair in ((np.array([bad, 1.0]), np.ones(2)), (np.ones(2), np.array([bad, 1.0]))):
        found = error_statistics([pair])
        assert found.elements == 2
        assert set(found.to_dict().values()) == {2, None}

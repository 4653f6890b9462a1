"""Samples in windows: percentiles, when to stop, and whether two runs differ.

A window is a few consecutive samples. Samples within a window share what the machine was doing, so
whole windows are what a bootstrap draws: two runs then differ only if they differ by more than the
machine does from one moment to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Windows = Sequence[Sequence[float]]

_RESAMPLES = 2000
_CONFIDENCE = 99.0


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` of all do not exceed (nearest rank)."""
    return float(np.percentile(np.asarray(samples), percent, method="inverted_cdf"))


def median(samples: Sequence[float]) -> float:
    """The middle sample, or the mean of the two in the middle."""
    return float(np.median(np.asarray(samples)))


def is_stable(windows: Windows, tolerance: float, count: int = 3) -> bool:
    """Whether the medians of the last `count` windows lie within `tolerance` (a share) of each.

    False with fewer windows.
    """
    medians = [median(w) for w in windows[-count:]]
    return len(medians) == count and max(medians) <= (1 + tolerance) * min(medians)


@dataclass(frozen=True)
class RatioInterval:
    """New over old: the ratio of medians and its interval of 99% by a bootstrap of windows."""

    ratio: float
    low: float
    high: float

    def verdict(self, margin: float) -> str:
        """Say "slower" or "faster" where all of the interval is beyond `margin` (a share)."""
        if self.low > 1 + margin:
            return "slower"
        return "faster" if self.high < 1 / (1 + margin) else "same"


def ratio_of_medians(old: Windows, new: Windows, seed: int = 0) -> RatioInterval:
    """How much longer `new` takes than `old`; both need a window at least."""
    rng = np.random.default_rng(seed)
    drawn = _resampled(new, rng) / _resampled(old, rng)
    ends = np.percentile(drawn, [(100 - _CONFIDENCE) / 2, (100 + _CONFIDENCE) / 2])
    point = median(_joined(new)) / median(_joined(old))
    return RatioInterval(point, min(float(ends[0]), point), max(float(ends[1]), point))


def _joined(windows: Windows) -> list[float]:
    return [sample for window in windows for sample in window]


def _resampled(windows: Windows, rng: np.random.Generator) -> NDArray[np.float64]:
    """Medians of the samples of as many windows, drawn with replacement."""
    size = min(map(len, windows))
    table = np.array([window[:size] for window in windows])
    chosen = rng.integers(0, len(windows), (_RESAMPLES, len(windows)))
    medians: NDArray[np.float64] = np.median(table[chosen].reshape(_RESAMPLES, -1), axis=1)
    return medians

"""How far a tensor lies from its reference, over all cases together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ckv_export.runtimes.base import Array

LEAST = 1e-6
"""Elements smaller than this share of the largest count in no relative error: they are what
cancellation left, and any rounding is many times their size."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ErrorStatistics:
    """Absolute and relative errors of one tensor: largest, mean and 99th percentile.

    `cosine`: of the two tensors as vectors, 1 where both are zero. None stands for no finite
    number: no elements, or a NaN among them.
    """

    elements: int
    max: float | None
    mean: float | None
    p99: float | None
    max_relative: float | None
    mean_relative: float | None
    p99_relative: float | None
    cosine: float | None

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain JSON data."""
        return asdict(self)


NOTHING = ErrorStatistics(0, *([None] * 7))


def error_statistics(pairs: Iterable[tuple[Array, Array]]) -> ErrorStatistics:
    """Statistics over (got, expected) arrays of equal shape; others are left out."""
    same = [(g, e) for g, e in pairs if g.shape == e.shape]
    got, expected = (
        np.concatenate([np.zeros(0), *(pair[side].ravel().astype(np.float64) for pair in same)])
        for side in (0, 1)
    )
    if got.size == 0:
        return NOTHING
    if not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return ErrorStatistics(got.size, *([None] * 7))
    error, size = np.abs(got - expected), np.abs(expected)
    large = size > LEAST * size.max()
    return ErrorStatistics(
        got.size, *_summary(error), *_summary(error[large] / size[large]), cosine(got, expected)
    )


def _summary(error: Floats) -> tuple[float | None, float | None, float | None]:
    if error.size == 0:
        return None, None, None
    return float(error.max()), float(error.mean()), float(np.percentile(error, 99))


def cosine(a: Floats, b: Floats) -> float:
    """Cosine of the angle between two vectors; 1 if both are zero, 0 if one is."""
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if 0.0 in norms:
        return float(norms[0] == norms[1])
    return float((a / norms[0]) @ (b / norms[1]))

"""Sums of squares of event vectors: the d x d Gram matrix and the energies it holds.

For X [n, d], X^T X = V diag(s^2) V^T has the right singular vectors V and squared singular
values s^2 of X, however large n is: millions of events need d^2 numbers. *Energy* is
the sum of squares, ||X||_F^2 = sum s^2. Squaring halves the digits: singular values below
about 1e-7 of the largest are rounding, and energies below d * eps of it are set to 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckv_export.errors import EventsError

Matrix = NDArray[np.float64]
BLOCK = 8192
"""Events converted to float64 at a time, so that a long history costs no second copy."""


def gram(matrix: NDArray[np.floating[Any]]) -> Matrix:
    """X^T X [d, d] of X [n, d], in float64. n may be 0; raises `EventsError` on NaN or inf."""
    total = np.zeros((matrix.shape[1],) * 2)
    for start in range(0, len(matrix), BLOCK):
        block = matrix[start : start + BLOCK].astype(np.float64)
        if not np.isfinite(block).all():
            raise EventsError("K and V must be finite, got NaN or infinity among the events")
        total += block.T @ block
    return total


def energies(matrix: NDArray[np.floating[Any]], its_gram: Matrix) -> Matrix:
    """Squared singular values of X [n, d], largest first, filled with zeros to [d]."""
    events, width = matrix.shape
    small = its_gram
    if events < width:  # X X^T [n, n] has the same energies and is quicker
        rows = matrix.astype(np.float64)
        small = rows @ rows.T
    values: Matrix = np.linalg.eigvalsh(small)[::-1].astype(np.float64)
    found = clean(values, width)
    return np.pad(found, (0, width - len(found)))


def eigen(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Energies [d], largest first, and their directions as columns [d, d]."""
    values, vectors = np.linalg.eigh(matrix)
    return clean(values[::-1], len(values)), vectors[:, ::-1]


def clean(values: Matrix, width: int) -> Matrix:
    """`values`, largest first, with what is only rounding (and may be negative) set to 0."""
    floor = width * float(np.finfo(np.float64).eps) * max(0.0, float(values[:1].sum()))
    return np.where(values > floor, values, 0.0)


def users_of(
    vectors: NDArray[np.floating[Any]], mask: NDArray[np.bool_] | None
) -> Iterator[NDArray[np.floating[Any]]]:
    """Each user's real events [n_i, d] out of [B, S, d] and mask [B, S] (all if None)."""
    real = np.ones(vectors.shape[:2], bool) if mask is None else np.asarray(mask, bool)
    if real.shape != vectors.shape[:2]:
        raise EventsError(
            f"the mask must have shape {list(vectors.shape[:2])}, got {list(real.shape)}"
        )
    for events, keep in zip(vectors, real, strict=True):
        yield events[keep]

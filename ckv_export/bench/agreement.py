"""Whether what is to be timed computes the model's scores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ckv_export.bench.ways import Prepared
from ckv_export.errors import ParityFailure
from ckv_export.parity.tolerances import tolerance_of
from ckv_export.runtimes.base import Array

LEAST_AGREEING = 0.99
"""Share of the scores that must lie within the gate's bound. A near-tie at the edge of a long
branch's top-k may select another event in another runtime (README): one such candidate is no
fault of a way, one in a hundred is."""
HALF_BOUND = 0.02
"""Of scores stored or computed in half precision: a check for mistakes alone."""


def worst_errors(
    prepared: Sequence[Prepared], floats: str, expected: Array | None = None
) -> Mapping[str, float]:
    """Serve the request once by each way, timing that first call; each one's worst error by name.

    `expected`: the scores [B, C] they are compared with, None for those of the first; `floats`: how
    caches are stored. Raises `ParityFailure` where they disagree.
    """
    first = prepared[0].way.origin.precision
    errors = {}
    for one in prepared:
        start = time.perf_counter()
        score = one.score()
        one.way.first_call_seconds = time.perf_counter() - start
        expected = score if expected is None else expected
        bound = tolerance_of("score", one.spec.num_layers).absolute
        # The first way made the cache, and maybe the scores compared with.
        if {first, one.way.origin.precision, floats} != {"fp32"}:
            bound = HALF_BOUND
        errors[one.way.name] = _worst(one.way.name, bound, score, expected)
    return errors


def _worst(name: str, bound: float, score: Array, expected: Array) -> float:
    differences = _differences(score, expected)
    agreeing = float((differences <= bound).mean()) if differences.size else 1.0
    worst = float(differences.max(initial=0.0))
    if not agreeing >= LEAST_AGREEING:
        raise ParityFailure(
            f"{name}: {1 - agreeing:.1%} of the scores differ by more than {bound:.1e} from the "
            f"model's, the worst by {worst:.1e}: what is wrong is not timed"
        )
    return worst


def _differences(score: Array, expected: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.abs(np.asarray(score, np.float64) - np.asarray(expected, np.float64))

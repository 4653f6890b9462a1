"""Whether what is to be timed computes the model's scores."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckv_export.bench.ways import LeftOut, Prepared
from ckv_export.errors import CkvError, ParityFailure
from ckv_export.parity.tolerances import tolerance_of
from ckv_export.runtimes.base import Array

LEAST_AGREEING = 0.99
"""Share of the scores that must lie within the gate's bound. A near-tie at the edge of a long
branch's top-k may select another event in another runtime (README): one such candidate is no
fault of a way, one in a hundred is."""
HALF_BOUND = 0.02
"""Of scores stored or computed in half precision: a check for mistakes alone."""


@dataclass(frozen=True)
class Agreement:
    """Worst error by name of each way that has served a request, and the ways that can't."""

    errors: Mapping[str, float]
    failed: tuple[LeftOut, ...]

    def kept(self, prepared: Sequence[Prepared]) -> list[Prepared]:
        """Those that ran."""
        return [one for one in prepared if one.way.name in self.errors]


def agreement(
    prepared: Sequence[Prepared], floats: str, expected: Array | None = None
) -> Agreement:
    """Serve the request by each way until it has settled, timing the first call.

    `expected`: the scores [B, C] they are compared with, None for those of the first; `floats`: how
    caches are stored. Raises `ParityFailure` where they disagree, and what the first way raises.
    """
    first = prepared[0].way.origin.precision
    errors: dict[str, float] = {}
    failed = []
    for one in prepared:
        bound = tolerance_of("score", one.spec.num_layers).absolute
        # The first way made the cache, and maybe the scores compared with.
        if {first, one.way.origin.precision, floats} != {"fp32"}:
            bound = HALF_BOUND
        try:
            scores = _scores(one)
        except CkvError as error:
            if one is prepared[0]:
                raise
            failed.append(LeftOut(one.way.name, str(error)))
            continue
        expected = scores[0] if expected is None else expected
        errors[one.way.name] = max(_worst(one.way.name, bound, s, expected) for s in scores)
    return Agreement(errors, tuple(failed))


def _scores(one: Prepared) -> list[Array]:
    start = time.perf_counter()
    scores = [one.score()]
    one.way.first_call_seconds = time.perf_counter() - start
    return scores + [one.score() for _ in range(one.way.settles - 1)]


def _worst(name: str, bound: float, score: Array, expected: Array) -> float:
    differences = _differences(score, expected)
    agreeing = float((differences <= bound).mean()) if differences.size else 1.0
    worst = float(differences.max(initial=0.0))
    if agreeing < LEAST_AGREEING or not math.isfinite(worst):  # NaN is no near-tie
        raise ParityFailure(
            f"{name}: {1 - agreeing:.1%} of the scores differ by more than {bound:.1e} from the "
            f"model's, the worst by {worst:.1e}: what is wrong is not timed"
        )
    return worst


def _differences(score: Array, expected: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.abs(np.asarray(score, np.float64) - np.asarray(expected, np.float64))

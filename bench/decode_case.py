"""What the parts of bench_decode.py have in common: sizes, names, and the check before timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

EXPORTED, COMPILED = "ONNX Runtime", "torch.compile"

Calls = dict[str, Callable[[], np.ndarray]]


@dataclass(frozen=True)
class Case:
    """Sizes of a model and of one call with one user."""

    d: int
    heads: int
    history: int = 1000
    candidates: int = 300
    rows: int = 10000
    d_u: int = 2


def check(calls: Calls, expected: np.ndarray, bound: float, least: float) -> None:
    """End the script where fewer than the share `least` of a call's results are within `bound`."""
    for name, call in calls.items():
        differences = np.abs(call() - expected)
        if (differences <= bound).mean() < least:
            raise SystemExit(f"{name}: wrong by up to {differences.max():.1e}")

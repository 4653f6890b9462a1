"""What the parts of bench_decode.py have in common: sizes, names, and the check before timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckv_export.bench.allocator import keep_freed_memory
from ckv_export.bench.measure import Settings, in_turn
from ckv_export.bench.statistics import ratio_of_medians

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


def timed(calls: Calls, settings: Settings, ratio_key: str) -> dict[str, Any]:
    """Time the calls in turn, print a line each, and return their timings by name.

    `ratio_key`: where a timing keeps the ratio of its median to that of the first call.
    """
    keep_freed_memory()
    timings = in_turn(calls, settings)
    first = next(iter(timings.values())).windows
    rows = {}
    for name, timing in timings.items():
        ratio = ratio_of_medians(first, timing.windows)
        rows[name] = timing.to_dict(1) | {ratio_key: vars(ratio)}
        told = f"{ratio.ratio:5.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
        print(f"  {name:50} p50 {rows[name]['p50_ms']:8.3f} ms   x {told}", flush=True)
    return rows

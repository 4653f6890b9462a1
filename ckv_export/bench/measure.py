"""Calls timed in turn: every round calls each of them once, so that noise hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckv_export.bench.statistics import is_stable, median, percentile

Call = Callable[[], object]
Clock = Callable[[], float]

DIGITS = 7


@dataclass(frozen=True)
class Settings:
    """How long to measure.

    `warmup`: rounds not counted; `window`: rounds of a window; `tolerance`: how near each other
    (a share) the medians of the last three windows of every call must lie; `seconds`: the most
    time a phase takes, of all calls together, whether they are stable or not; `least`: windows.
    """

    warmup: int = 3
    window: int = 8
    tolerance: float = 0.03
    seconds: float = 20.0
    least: int = 3


@dataclass
class Timing:
    """Seconds of one call, in windows."""

    windows: list[list[float]] = field(default_factory=list)
    stable: bool = False

    @property
    def samples(self) -> list[float]:
        """All of them."""
        return [sample for window in self.windows for sample in window]

    def to_dict(self, each: int) -> dict[str, Any]:
        """Plain JSON data, milliseconds; `each`: requests that one call serves."""
        samples = self.samples
        mean = sum(samples) / len(samples)
        return {
            "p50_ms": _ms(median(samples)),
            **{f"p{p}_ms": _ms(percentile(samples, p)) for p in (90, 99)},
            "mean_ms": _ms(mean),
            "per_second": round(each / mean, 3),
            "calls": len(samples),
            "stable": self.stable,
            "windows_ms": [[_ms(s) for s in window] for window in self.windows],
        }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, DIGITS - 3)


def in_turn(
    calls: Mapping[str, Call], settings: Settings, clock: Clock = time.perf_counter
) -> dict[str, Timing]:
    """Time every call in rounds until all are stable or the time is up.

    One window per call is complete at least, however slow it is.
    """
    for _ in range(settings.warmup):
        for call in calls.values():
            call()
    until = clock() + settings.seconds  # what compiles at its first call does so before
    timings = {name: Timing() for name in calls}
    while calls:
        _one_window(calls, timings, settings.window, clock)
        for timing in timings.values():
            timing.stable = is_stable(timing.windows, settings.tolerance)
        done = all(t.stable for t in timings.values())
        counted = len(next(iter(timings.values())).windows)
        if clock() >= until or (done and counted >= settings.least):
            break
    return timings


def _one_window(
    calls: Mapping[str, Call], timings: Mapping[str, Timing], size: int, clock: Clock
) -> None:
    for timing in timings.values():
        timing.windows.append([])
    for _ in range(size):
        for name, call in calls.items():
            start = clock()
            call()
            timings[name].windows[-1].append(clock() - start)

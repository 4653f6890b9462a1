"""The highest request rate at which p99 latency stays within a bound.

Requests arrive as a Poisson process whether or not the server is ready: latency counts from the
moment a request was due, so that waiting in the queue is counted (no coordinated omission). One
server takes them in order, one call each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckv_export.bench.measure import Call
from ckv_export.bench.statistics import median, percentile

LEAST_REQUESTS = 100
"""In a trial: below, p99 is the slowest request."""


AWAKE = 0.001
"""Seconds before a request is due from which on it is waited for without sleeping."""


def wait(seconds: float) -> None:
    """Return after `seconds`, not later: who sleeps is woken about a tenth of a millisecond late.

    It would count as latency of the request that was waited for.
    """
    until = time.perf_counter() + seconds
    if seconds > AWAKE:
        time.sleep(seconds - AWAKE)
    while time.perf_counter() < until:
        pass


@dataclass(frozen=True)
class Clock:
    """Time in seconds and how to wait; a test gives one of its own."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = wait


@dataclass(frozen=True)
class Trial:
    """One rate tried: requests per second offered and served, and p50 and p99 in seconds."""

    rate: float
    served: int
    p50: float
    p99: float
    within: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "rate": round(self.rate, 3),
            "served": self.served,
            "p50_ms": round(1000 * self.p50, 4),
            "p99_ms": round(1000 * self.p99, 4),
            "within": self.within,
        }


@dataclass(frozen=True)
class RateFound:
    """The highest rate tried that was within the bound (0 where none was), and all trials.

    `tried`: False where every rate was too low to be tried, so that none is known.
    """

    bound: float
    rate: float
    trials: tuple[Trial, ...]
    tried: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "bound_ms": round(1000 * self.bound, 4),
            "requests_per_second": round(self.rate, 3) if self.tried else None,
            "trials": [t.to_dict() for t in self.trials],
        }


def offer(
    call: Call, rate: float, count: int, bound: float, rng: np.random.Generator, clock: Clock
) -> Trial:
    """Offer `count` requests at `rate` a second; stops early once p99 can't be within `bound`."""
    due = clock.now() + np.cumsum(rng.exponential(1 / rate, count))
    latencies: list[float] = []
    late = 0
    for moment in due:
        ahead = float(moment) - clock.now()
        if ahead > 0:
            clock.sleep(ahead)
        call()
        latencies.append(clock.now() - float(moment))
        late += latencies[-1] > bound
        if late > count // 100:
            break
    p99 = percentile(latencies, 99)
    within = late <= count // 100
    return Trial(rate, len(latencies), median(latencies), p99, within)


def highest_rate(
    call: Call,
    bound: float,
    seconds: float,
    seed: int = 0,
    steps: int = 6,
    clock: Clock | None = None,
) -> RateFound:
    """Bisect rates between none and what back-to-back calls reach, `steps` times.

    `bound`: seconds; `seconds`: how long a trial of a rate takes at least. `LEAST_REQUESTS` stretch
    it to four times that at most: lower rates are not tried, and a slow server may have no other.
    Nor is any tried after eight times `seconds`. The same seed gives every trial the same arrivals,
    at another pace.
    """
    clock = clock or Clock()
    until = clock.now() + 8 * seconds
    alone = _back_to_back(call, clock)
    if alone > bound:
        return RateFound(bound, 0.0, ())
    low, high, least = 0.0, 1.0 / alone, LEAST_REQUESTS / (4 * seconds)
    trials: list[Trial] = []
    for _ in range(steps):
        rate = max((low + high) / 2, least)
        if clock.now() > until or rate >= high:
            break
        count = max(LEAST_REQUESTS, round(rate * seconds))
        trials.append(offer(call, rate, count, bound, np.random.default_rng(seed), clock))
        low, high = (rate, high) if trials[-1].within else (low, rate)
    return RateFound(bound, low, tuple(trials), bool(trials))


def _back_to_back(call: Call, clock: Clock, calls: int = 15) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(calls):
        start = clock.now()
        call()
        times.append(clock.now() - start)
    return median(times)

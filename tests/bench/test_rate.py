"""The rate search against a server in a simulated time, whose capacity is known."""

from __future__ import annotations

import numpy as np
import pytest

from ckv_export.bench.rate import Clock, highest_rate, offer
from ckv_export.bench.statistics import percentile


class Simulated:
    """A server that takes `service` seconds a request, in a time of its own."""

    def __init__(self, service: float) -> None:
        self.time, self.service, self.served = 0.0, service, 0
        self.clock = Clock(lambda: self.time, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def call(self) -> None:
        self.served += 1
        self.time += self.service


def latencies_by_loop(due: np.ndarray, service: float) -> list[float]:
    free, latencies = 0.0, []
    for moment in due:
        free = max(free, moment) + service
        latencies.append(free - moment)
    return latencies


def test_waiting_in_the_queue_is_counted(seed: int):
    server = Simulated(0.01)
    trial = offer(server.call, 80.0, 500, 1e9, np.random.default_rng(seed), server.clock)
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / 80, 500))
    expected = latencies_by_loop(due, 0.01)
    assert trial.served == 500
    assert trial.p99 == pytest.approx(percentile(expected, 99))
    assert trial.p50 == pytest.approx(float(np.median(expected)))
    # Closed-loop latencies would all be the service time.
    assert trial.p99 > 0.02


def test_with_a_wide_bound_the_rate_nears_capacity(seed: int):
    server = Simulated(0.01)
    found = highest_rate(server.call, 1e6, 20.0, seed, clock=server.clock)
    assert 0.95 * 100 <= found.rate < 100


def test_with_a_narrow_bound_it_is_where_the_tail_crosses_it(seed: int):
    server = Simulated(0.01)
    found = highest_rate(server.call, 0.03, 20.0, seed, clock=server.clock)
    assert 0 < found.rate < 95
    assert found.rate == max(t.rate for t in found.trials if t.within)
    over = min(t.rate for t in found.trials if not t.within)
    for rate, within in ((found.rate, True), (over, False)):
        count = max(100, round(rate * 20.0))
        due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
        late = sum(x > 0.03 for x in latencies_by_loop(due, 0.01))
        assert (late <= count // 100) == within


def test_a_request_slower_than_the_bound_has_no_rate():
    server = Simulated(0.01)
    found = highest_rate(server.call, 0.009, 5.0, clock=server.clock)
    assert found.rate == 0.0
    assert not found.trials


def test_a_hopeless_trial_ends_early():
    server = Simulated(1.0)
    trial = offer(server.call, 100.0, 10_000, 0.5, np.random.default_rng(0), server.clock)
    assert not trial.within
    assert trial.served == 101

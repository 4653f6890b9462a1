"""The rate search against a server in a simulated time, whose capacity is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ckv_export.bench import rate as rate_module
from ckv_export.bench.rate import Clock, RateFound, Trial, highest_rate, offer, wait
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


@pytest.mark.parametrize("count", [100, 101, 150, 199, 200, 250])
def test_within_means_that_p99_is(count: int, seed: int):
    """With a bound at each of the slowest latencies, and just below."""
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / 80, count))
    latencies = latencies_by_loop(due, 0.01)
    for latency in sorted(set(latencies))[-5:]:
        for bound in (latency + 1e-9, latency - 1e-9):
            server = Simulated(0.01)
            rng = np.random.default_rng(seed)
            trial = offer(server.call, 80.0, count, bound, rng, server.clock)
            assert trial.within == (percentile(latencies, 99) <= bound)
            assert trial.within == (trial.p99 <= bound), "also of one that ended early"


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


def test_rates_too_low_for_a_hundred_requests_are_left_out_and_higher_ones_are_not():
    """At 9 requests a second and trials of 20 seconds at most, those below 5 a second are."""
    server = Simulated(1 / 9)
    found = highest_rate(server.call, 1e6, 5.0, steps=1, clock=server.clock)
    assert [trial.rate for trial in found.trials] == [pytest.approx(5.0)]
    assert found.trials[0].served == 100
    server = Simulated(1 / 9)
    found = highest_rate(server.call, 1e6, 5.0, clock=server.clock)
    assert found.rate == pytest.approx(7.0)  # halfway to 9; after it the time is up


def test_that_no_rate_could_be_tried_is_no_rate_of_zero():
    server = Simulated(0.25)
    found = highest_rate(server.call, 1.0, 5.0, clock=server.clock)
    assert (found.rate, found.trials) == (0.0, ())
    assert found.to_dict()["requests_per_second"] is None
    slow = highest_rate(server.call, 0.2, 5.0, clock=server.clock)
    assert slow.to_dict()["requests_per_second"] == 0.0


def test_a_rate_that_fails_at_the_lowest_that_can_be_tried_ends_the_search():
    server = Simulated(1 / 9)
    found = highest_rate(server.call, 0.12, 5.0, clock=server.clock)
    assert found.to_dict()["requests_per_second"] == 0.0
    assert [trial.within for trial in found.trials] == [False]


def test_no_rate_is_begun_after_eight_times_the_seconds():
    server = Simulated(0.01)
    found = highest_rate(server.call, 1e6, 1.0, steps=1000, clock=server.clock)
    assert len(found.trials) < 20
    assert 8 < server.time < 8 + 4 + 1


def test_a_request_is_waited_for_on_time(monkeypatch: pytest.MonkeyPatch):
    """Whoever sleeps is woken late: 0.1 ms here."""
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds + 1e-4

    def read() -> float:
        now[0] += 1e-6
        return now[0]

    monkeypatch.setattr(rate_module, "time", SimpleNamespace(sleep=sleep, perf_counter=read))
    for seconds in (0.5, 0.002, 0.0005):
        start = now[0]
        wait(seconds)
        assert seconds <= now[0] - start < seconds + 5e-6
    assert slept == pytest.approx([0.499, 0.001])  # most of the time it sleeps
    assert Clock().sleep is wait


def test_a_hopeless_trial_ends_early():
    server = Simulated(1.0)
    trial = offer(server.call, 100.0, 10_000, 0.5, np.random.default_rng(0), server.clock)
    assert not trial.within
    assert trial.served == 101


def test_a_result_has_milliseconds():
    trial = Trial(rate=2.0, served=100, p50=0.25, p99=0.5, within=True)
    told = {"rate": 2.0, "served": 100, "p50_ms": 250.0, "p99_ms": 500.0, "within": True}
    assert RateFound(0.75, 2.0, (trial,)).to_dict() == {
        "bound_ms": 750.0,
        "requests_per_second": 2.0,
        "trials": [told],
    }
    assert RateFound(0.75, 0.0, (), tried=False).to_dict()["requests_per_second"] is None

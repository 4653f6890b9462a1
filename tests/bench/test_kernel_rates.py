"""bench/kernel_rates.py where there is no GPU: the clock, the rates and the floors."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from ckv_testing.kernels import exponentials, stand_in


@pytest.mark.parametrize("cold", [False, True])
def test_the_gpu_is_timed_while_it_is_busy(
    kernel_rates: ModuleType, monkeypatch: pytest.MonkeyPatch, cold: bool
) -> None:
    said: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            said.append("record")

        def synchronize(self) -> None:
            said.append("wait")

        def elapsed_time(self, stop: object) -> float:
            assert stop is not self
            warming_up = said.count("work") <= kernel_rates.WARMUP
            return 7.0 if warming_up else 0.002  # milliseconds

    l2 = SimpleNamespace(L2_cache_size=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: l2)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: said.append("sleep"))
    timer = kernel_rates.Timer()
    assert timer._flush.nbytes > 1000
    timer._flush = SimpleNamespace(zero_=lambda: said.append("flush"))
    assert timer.median(lambda: said.append("work"), cold) == pytest.approx(2)
    once = ["flush"] * cold + ["sleep", "record", "work", "record", "wait"]
    assert said == once * (kernel_rates.WARMUP + kernel_rates.REPEATS)


def test_a_copy_reads_and_writes(kernel_rates: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_rates, "SIDE", 10)
    monkeypatch.setattr(kernel_rates, "exponential_rate", lambda timer, ops: 3.0)
    timer = SimpleNamespace(median=lambda work, cold: 2.0)
    rates = kernel_rates.Rates.measure(timer, [torch.float16], stand_in())
    assert rates == kernel_rates.Rates(float(1 << 30), {torch.float16: 1000}, 3.0)


@pytest.mark.parametrize(
    ("dtype", "microseconds", "rate"),
    [
        (torch.float32, {False: 2, True: 1}, 1000 / 2),
        (torch.float32, {False: 8, True: 2}, 1000 / 6),
        (torch.float16, {False: 4}, 1000 / 4),
    ],
)
def test_an_fp32_product_costs_one_of_its_own_or_three_of_tf32(
    kernel_rates: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    microseconds: dict[bool, int],
    rate: float,
) -> None:
    class Timer:
        def median(self, work: Any, cold: bool) -> float:
            assert work().shape == (10, 10)
            assert work().dtype == dtype
            return microseconds[torch.backends.cuda.matmul.allow_tf32]

    monkeypatch.setattr(kernel_rates, "SIDE", 10)
    assert kernel_rates.product_rate(Timer(), dtype) == pytest.approx(2 * rate)
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("counts", "dtype", "terms", "said"),
    [
        ((80, 100, 4), torch.float32, (20, 10, 8), "floor 20.0 us"),
        ((80, 1000, 4), torch.float32, (20, 100, 8), "floor 100.0 us"),
        ((80, 1000, 60), torch.float16, (20, 10, 120), "floor 120.0 us"),
    ],
)
def test_a_floor_is_the_longest_of_its_terms(
    kernel_rates: ModuleType,
    counts: tuple[int, int, int],
    dtype: torch.dtype,
    terms: tuple[int, int, int],
    said: str,
) -> None:
    rates = kernel_rates.Rates(4.0, {torch.float32: 10.0, torch.float16: 100.0}, 0.5)
    floor = rates.floor(*counts, dtype)
    assert (floor.bytes, floor.products, floor.exponentials) == terms
    assert floor.whole == max(terms)
    assert floor.without_exponentials == max(terms[:2])
    each = "bytes {:.1f}, products {:.1f}, exponentials {:.1f}".format(*terms)
    assert str(floor) == f"{said} ({each})"


@pytest.fixture
def one_multiprocessor(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(multi_processor_count=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


class Probe:
    """The operator and a clock: so many microseconds a call, and so many a round."""

    def __init__(self, call: float, each: float, error: float = 0.0) -> None:
        self.call, self.each, self.error = call, each, error
        self.rounds = 0

    def exponentials(self, x: torch.Tensor, rounds: int) -> torch.Tensor:
        self.rounds = rounds
        return exponentials(x, min(rounds, 3)) + self.error

    def median(self, work: Any, cold: bool) -> float:
        assert not cold
        work()
        return self.call + self.each * self.rounds


@pytest.mark.usefixtures("one_multiprocessor")
def test_the_rate_of_exponentials_counts_what_more_of_them_take(kernel_rates: ModuleType) -> None:
    probe = Probe(call=30, each=2)
    rate = kernel_rates.exponential_rate(probe, probe)
    assert rate == pytest.approx(kernel_rates.NUMBERS / 2)


@pytest.mark.usefixtures("one_multiprocessor")
@pytest.mark.parametrize(
    ("probe", "why_not"),
    [
        (Probe(call=30, each=2, error=1e-3), "AssertionError: Tensor-likes are not close!"),
        # Memory or launches hold it up, not its exponentials.
        (Probe(call=3000, each=2), "ValueError: 512 rounds took 4024.0 us and 2560 rounds 8120.0"),
        (SimpleNamespace(), "AttributeError: "),
    ],
)
def test_a_rate_of_exponentials_that_is_none_is_not_told(
    kernel_rates: ModuleType, monkeypatch: pytest.MonkeyPatch, probe: Any, why_not: str
) -> None:
    monkeypatch.setattr(kernel_rates, "SIDE", 10)
    if not isinstance(probe, Probe):
        probe.median = lambda work, cold: 2.0
    rates = kernel_rates.Rates.measure(probe, [torch.float16], probe)
    assert rates.exponentials is None
    assert rates.why_no_exponentials.startswith(why_not)
    assert "\n" not in str(rates)
    assert f"exponentials not measured ({rates.why_no_exponentials})" in str(rates)
    assert rates.floor(80, 0, 5, torch.float16).exponentials is None

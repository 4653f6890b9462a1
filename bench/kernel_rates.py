"""How fast this GPU copies, multiplies and exponentiates, and the clock by which that is told."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

DEVICE = "cuda"
WARMUP, REPEATS = 5, 50
# Half a millisecond in which the GPU does nothing else, so that a call is queued whole before it
# begins: how long a CPU takes to launch ten kernels is not what they take.
HEAD_START = 1_000_000  # cycles
SIDE = 8192  # of the matrices whose product is measured
# Numbers of a multiprocessor, twice what it works on at once, and how often each goes through 2^-x:
# a millisecond, in which reading and writing them is a hundredth.
NUMBERS, ROUNDS = 16 * 1024, (512, 2560)


class Timer:
    """Medians in microseconds of the GPU's own time, by CUDA events."""

    def __init__(self) -> None:
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        self._flush = torch.empty(4 * l2, dtype=torch.int8, device=DEVICE)

    def median(self, work: Callable[[], object], cold: bool) -> float:
        times = []
        for _ in range(WARMUP + REPEATS):
            if cold:
                self._flush.zero_()
            torch.cuda._sleep(HEAD_START)
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            stop.record()
            stop.synchronize()
            times.append(1000 * start.elapsed_time(stop))
        return statistics.median(times[WARMUP:])


def product_rate(timer: Timer, dtype: torch.dtype) -> float:
    """Operations per microsecond of a large product.

    One of fp32 is as precise as three of TF32, on tensor cores: whichever is faster counts.
    """

    def rate(tf32: bool) -> float:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        x, y = (torch.randn(SIDE, SIDE, device=DEVICE).to(dtype) for _ in range(2))
        return 2 * SIDE**3 / timer.median(lambda: x @ y, cold=False)

    plain = rate(tf32=False)
    if dtype != torch.float32:
        return plain
    thirds = rate(tf32=True) / 3
    # Left on, it would make fp32 rivals faster and wrong.
    torch.backends.cuda.matmul.allow_tf32 = False
    return max(plain, thirds)


def exponential_rate(timer: Timer, ops: Any) -> float:
    """fp32 exponentials per microsecond, by the instruction that our kernels take.

    Of two calls that differ in nothing but the rounds, so that launch and memory cancel out. Raises
    where results are wrong, and where five times the rounds do not take about that much longer.
    """
    count = NUMBERS * torch.cuda.get_device_properties(0).multi_processor_count
    x = torch.rand(count, device=DEVICE)
    expected = x
    for _ in range(3):
        expected = torch.exp2(-expected)
    torch.testing.assert_close(ops.exponentials(x, 3), expected)

    def time(rounds: int) -> float:
        return timer.median(lambda: ops.exponentials(x, rounds), cold=False)

    few, many = ROUNDS
    shorter, longer = time(few), time(many)
    if longer < 0.8 * many / few * shorter:
        raise ValueError(f"{few} rounds took {shorter:.1f} us and {many} rounds {longer:.1f} us")
    return count * (many - few) / (longer - shorter)


@dataclass(frozen=True)
class Floor:
    """Microseconds that each kind of work takes alone; at best all go on at once."""

    bytes: float
    products: float
    exponentials: float | None  # where there are any, and their rate is not known

    @property
    def without_exponentials(self) -> float:
        return max(self.bytes, self.products)

    @property
    def whole(self) -> float:
        return max(self.without_exponentials, self.exponentials or 0.0)

    def __str__(self) -> str:
        terms = [f"bytes {self.bytes:.1f}", f"products {self.products:.1f}"]
        unknown = self.exponentials is None
        terms.append("exponentials " + ("not measured" if unknown else f"{self.exponentials:.1f}"))
        return f"floor {self.whole:.1f} us ({', '.join(terms)})"


@dataclass(frozen=True)
class Rates:
    """What this GPU does: bytes, operations and exponentials per microsecond."""

    copy: float
    products: Mapping[torch.dtype, float]
    exponentials: float | None = None
    why_no_exponentials: str | None = None

    @classmethod
    def measure(cls, timer: Timer, dtypes: list[torch.dtype], ops: Any) -> Rates:
        size = 1 << 30
        a, b = (torch.empty(size, dtype=torch.int8, device=DEVICE) for _ in range(2))
        copy = 2 * size / timer.median(lambda: a.copy_(b), cold=False)
        products = {dtype: product_rate(timer, dtype) for dtype in dtypes}
        try:
            return cls(copy, products, exponential_rate(timer, ops))
        # The other rates are worth something without this one.
        except Exception as error:
            why_not = f"{type(error).__name__}: {error}".partition("\n")[0]
            return cls(copy, products, None, why_not)

    def __str__(self) -> str:
        products = ", ".join(f"{d} {r / 1e6:.1f} TFLOP/s" for d, r in self.products.items())
        said = f"copy {self.copy / 1e3:.0f} GB/s; products {products}; exponentials "
        if self.exponentials is None:
            return f"{said}not measured ({self.why_no_exponentials})"
        return f"{said}{self.exponentials / 1e6:.2f} T/s"

    def floor(
        self, moved: float, operations: float, exponentials: float, dtype: torch.dtype
    ) -> Floor:
        known = None if self.exponentials is None else exponentials / self.exponentials
        return Floor(
            bytes=moved / self.copy,
            products=operations / self.products[dtype],
            exponentials=known if exponentials else 0.0,
        )

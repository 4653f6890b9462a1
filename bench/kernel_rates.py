"""How fast this GPU copies and multiplies, and the clock by which that is told."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

DEVICE = "cuda"
WARMUP, REPEATS = 5, 50
# Half a millisecond in which the GPU does nothing else, so that a call is queued whole before it
# begins: how long a CPU takes to launch ten kernels is not what they take.
HEAD_START = 1_000_000  # cycles
SIDE = 8192  # of the matrices whose product is measured


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


@dataclass(frozen=True)
class Rates:
    """What this GPU does: bytes and operations per microsecond."""

    copy: float
    products: Mapping[torch.dtype, float]

    @classmethod
    def measure(cls, timer: Timer, dtypes: list[torch.dtype]) -> Rates:
        size = 1 << 30
        a, b = (torch.empty(size, dtype=torch.int8, device=DEVICE) for _ in range(2))
        copy = 2 * size / timer.median(lambda: a.copy_(b), cold=False)
        return cls(copy, {dtype: product_rate(timer, dtype) for dtype in dtypes})

    def floor(self, moved: float, operations: float, dtype: torch.dtype) -> float:
        return max(moved / self.copy, operations / self.products[dtype])

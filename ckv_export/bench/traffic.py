"""Requests as they come: long-tailed history lengths, Zipf items, shapes in buckets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckv_export.errors import InputError

SPREAD = 1.2
"""Standard deviation of the logarithm of a length."""
ZIPF = 1.1
"""Exponent of the popularity of items by rank."""


def history_lengths(
    count: int, longest: int, rng: np.random.Generator, typical: float | None = None
) -> list[int]:
    """Lengths from a log-normal around `typical` (a tenth of `longest` unless told), 0..longest."""
    middle = typical or max(longest / 10, 1)
    drawn = rng.lognormal(np.log(middle), SPREAD, count)
    return [int(n) for n in np.minimum(drawn, longest)]


def zipf_ids(vocab: int, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.int32]:
    """Ids in [1, vocab) by a Zipf law cut off there; the same ids are popular in every call."""
    if vocab <= 2:
        return np.full(shape, vocab - 1, np.int32)
    # Ranks by inverting the integral of the law: no table as long as the vocabulary.
    high = float(vocab) ** (1 - ZIPF)
    ranks = (1 + rng.random(shape) * (high - 1)) ** (1 / (1 - ZIPF))
    whole = np.minimum(ranks.astype(np.int64), vocab - 1)
    return _scattered(whole - 1, vocab - 1).astype(np.int32) + np.int32(1)


def _scattered(ranks: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """A permutation of [0, size), so that neighbours in popularity are not neighbours in memory."""
    step = max(1, int(size * 0.6180339887))
    while np.gcd(step, size) != 1:
        step += 1
    return (ranks * step) % size


def buckets(longest: int, count: int = 4) -> tuple[int, ...]:
    """`count` history lengths to pad to, each twice the one before: 125, 250, 500, 1000.

    Fewer where they would be the same: without events, 0 alone.
    """
    return tuple(sorted({-(-longest // 2**i) for i in range(count)}))


def bucket_of(length: int, sizes: Sequence[int]) -> int:
    """The smallest bucket that holds `length`; raises `InputError` where none does."""
    fitting = [size for size in sizes if size >= length]
    if not fitting:
        raise InputError(
            f"a history of {length} events fits none of the buckets {', '.join(map(str, sizes))}"
        )
    return min(fitting)


@dataclass(frozen=True)
class Waste:
    """What padding to buckets costs: events that are real, and that are computed."""

    real: int
    padded: int
    by_bucket: dict[int, int]

    @property
    def share(self) -> float:
        """Share of what is computed that is padding."""
        return 1 - self.real / self.padded if self.padded else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "real_events": self.real,
            "padded_events": self.padded,
            "share_padding": round(self.share, 4),
            "requests_by_bucket": {str(size): n for size, n in self.by_bucket.items()},
        }


def padding_waste(lengths: Sequence[int], sizes: Sequence[int]) -> Waste:
    """Count events before and after every length is padded to its bucket."""
    chosen = [bucket_of(length, sizes) for length in lengths]
    counts = {size: chosen.count(size) for size in sizes}
    return Waste(sum(lengths), sum(chosen), counts)

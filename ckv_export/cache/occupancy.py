"""How evenly events spread over the rows of a pool.

A router that sends everything to a few rows wastes the pool; the paper trains against it
with a load-balance loss (arXiv 2601.19178). Entropies are in nats.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckv_export.contract import require
from ckv_export.errors import EventsError

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class PoolOccupancy:
    """Use of one pool by `events` events.

    `used_share`: rows used / rows. `uniform_used_rows`: rows that as many events would use on
    average if each row were as likely, so that few events are not mistaken for dead rows.
    `entropy`: H = -sum p ln p over the rows' shares p. `effective_rows`: exp(H), the number of
    equally used rows with that entropy (Hill number of order 1, Hill 1973); 0 without events.
    `normalised_entropy`: H / ln M, 1 where M = 1. `top_1_percent`, `top_10_percent`: share of
    events on the ceil(M/100) and ceil(M/10) most used rows. `max_row_share`: the busiest row.
    `sorted_counts`: events per row, most used first [M]; for plots, not part of `to_dict`.
    """

    side: str
    layer: int
    rows: int
    events: int
    rows_used: int
    rows_dead: int
    used_share: float
    uniform_used_rows: float
    entropy: float
    effective_rows: float
    normalised_entropy: float
    top_1_percent: float
    top_10_percent: float
    max_row_share: float
    sorted_counts: Counts = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, without the counts of single rows."""
        data = asdict(self)
        del data["sorted_counts"]
        return data


def pool_occupancy(
    index: NDArray[np.integer[Any]],
    mask: NDArray[np.bool_] | None = None,
    *,
    rows: int,
    side: str = "k",
) -> tuple[PoolOccupancy, ...]:
    """Occupancy of each layer's pool of one side.

    `index`: row numbers, [N] of one layer or [B, L, S]. `mask`: true where an event is real,
    [N] or [B, S]; all of them if None. What stands at a masked position is ignored. `rows`: M.
    Raises `EventsError` on another shape, on numbers that are not whole, and on a row
    number outside [0, M); `SpecError` where the side has no pool.
    """
    counts = row_counts(index, mask, rows=rows, side=side)
    return tuple(occupancy_of_counts(c, side=side, layer=n) for n, c in enumerate(counts))


def row_counts(
    index: NDArray[np.integer[Any]],
    mask: NDArray[np.bool_] | None = None,
    *,
    rows: int,
    side: str = "k",
) -> Counts:
    """Events per row, [L, M]; arguments and errors as `pool_occupancy`.

    The counts of several batches may be added up and given to `occupancy_of_counts`.
    """
    require(rows > 0, f"the {side.upper()} side has no pool, so no rows to count")
    layers, real = _layers_and_mask(np.asarray(index), mask, side)
    return np.stack([_count(layer[real], rows, side, n) for n, layer in enumerate(layers)])


def occupancy_of_counts(counts: Counts, *, side: str = "k", layer: int = 0) -> PoolOccupancy:
    """Occupancy from events per row [M], M >= 1."""
    ordered = np.sort(counts)[::-1]
    events, rows, used = int(counts.sum()), len(counts), int((counts > 0).sum())
    shares = ordered / max(events, 1)
    entropy = _entropy(shares)
    return PoolOccupancy(
        side=side,
        layer=layer,
        rows=rows,
        events=events,
        rows_used=used,
        rows_dead=rows - used,
        used_share=used / rows,
        uniform_used_rows=_uniform_used_rows(rows, events),
        entropy=entropy,
        effective_rows=float(np.exp(entropy)) if events else 0.0,
        normalised_entropy=_normalised(entropy, rows, events),
        top_1_percent=_top_share(shares, 100),
        top_10_percent=_top_share(shares, 10),
        max_row_share=float(shares[0]),
        sorted_counts=ordered,
    )


def _layers_and_mask(
    index: NDArray[Any], mask: NDArray[np.bool_] | None, side: str
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Bring the index to [L, B, S] (a list of events counts as one user), the mask to [B, S]."""
    name = f"{side.upper()} row numbers"
    if index.dtype.kind not in "iu":
        raise EventsError(f"{name} must be whole numbers, got {index.dtype}")
    if index.ndim not in (1, 3):
        raise EventsError(f"{name} must have shape [N] or [B, L, S], got {list(index.shape)}")
    per_user = index[None, None] if index.ndim == 1 else index
    layers = per_user.transpose(1, 0, 2)
    real = np.ones(layers.shape[1:], bool) if mask is None else np.asarray(mask, bool)
    if index.ndim == 1 and real.ndim == 1:
        real = real[None]
    if real.shape != layers.shape[1:]:
        wanted = list(index.shape) if index.ndim == 1 else list(layers.shape[1:])
        raise EventsError(f"the mask of {name} must have shape {wanted}, got {list(real.shape)}")
    return layers, real


def _count(index: NDArray[Any], rows: int, side: str, layer: int) -> Counts:
    outside = index[(index < 0) | (index >= rows)]
    if outside.size:
        raise EventsError(
            f"{side.upper()} row numbers of layer {layer} must lie in [0, {rows}), got "
            f"{outside[0]} and {outside.size - 1} more outside: were they made by another model?"
        )
    return np.bincount(index.astype(np.int64), minlength=rows).astype(np.int64)


def _entropy(shares: NDArray[np.float64]) -> float:
    used = shares[shares > 0]
    return max(0.0, -float(np.sum(used * np.log(used))))


def _normalised(entropy: float, rows: int, events: int) -> float:
    if rows == 1:
        return 1.0 if events else 0.0
    return min(1.0, entropy / float(np.log(rows)))


def _top_share(shares: NDArray[np.float64], part: int) -> float:
    """Share of events on the first ceil(M / part) of the sorted rows."""
    return min(1.0, float(shares[: -(-len(shares) // part)].sum()))


def _uniform_used_rows(rows: int, events: int) -> float:
    """M (1 - (1 - 1/M)^N): each row is missed with probability (1 - 1/M)^N."""
    if rows == 1:
        return float(min(events, 1))
    return float(-rows * np.expm1(events * np.log1p(-1 / rows)))

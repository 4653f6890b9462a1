"""How many bytes one user costs: the compact cache, item by item, beside the full KV cache.

Everything is counted as stored, not as the graphs take it: row numbers
are uint16 where the pool has at most 65536 rows, user parts are fp32, fp16 or int8. The
paper's ratio (arXiv 2601.19178) is d_u/d and counts no row numbers; the ratios here do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ckv_export.cache.record.header import HEADER_BYTES
from ckv_export.cache.rows import (
    SCALE_BYTES,
    USER_DTYPES,
    SizeRow,
    compact_rows,
    feature_rows,
    full_rows,
    id_row,
    item_id,
    pool_bytes,
)
from ckv_export.contract import FEATURES, EventForm, ModelSpec
from ckv_export.errors import InputError, nearest

GIGABYTE = 10**9
EXTRAS = {
    "none": "cache alone",
    "item_id": "cache + item ids",
    "item_features": "cache + history as decode takes it",
}
"""What a server keeps, by the `extras` of a `Comparison`."""


@dataclass(frozen=True)
class Comparison:
    """Bytes per user of both kinds of server, with the same extras added to each.

    `extras`: what is kept of the whole history beside the cache, for the long branch: "none",
    "item_id" or "item_features".
    """

    extras: str
    compact: int
    full_fp16: int
    full_fp32: int

    @property
    def label(self) -> str:
        """What is kept, for people."""
        return EXTRAS[self.extras]

    @property
    def ratio_fp16(self) -> float | None:
        """Compact over full fp16; None where nothing is stored."""
        return self.compact / self.full_fp16 if self.full_fp16 else None

    @property
    def ratio_fp32(self) -> float | None:
        """Compact over full fp32; None where nothing is stored."""
        return self.compact / self.full_fp32 if self.full_fp32 else None

    def to_dict(self, users: int | None = None) -> dict[str, Any]:
        """Plain JSON data: bytes per user, users per GB, ratios, totals for `users`."""
        sizes = {n: getattr(self, n) for n in ("compact", "full_fp16", "full_fp32")}
        data: dict[str, Any] = {"extras": self.extras, "bytes_per_user": sizes}
        data["users_per_gb"] = {n: users_per_gb(size) for n, size in sizes.items()}
        if users is not None:
            data["total_bytes"] = {n: size * users for n, size in sizes.items()}
        return data | {"ratio_fp16": self.ratio_fp16, "ratio_fp32": self.ratio_fp32}


@dataclass(frozen=True)
class CacheSizes:
    """What one user costs; see `cache_sizes`.

    `compact`: the rows of the compact cache. `full`: K and V uncompressed, fp16 then fp32.
    `item_features`: the history as the decode graph takes it, which may be empty for HSTU.
    `item_id`: the smaller alternative, where a server keeps the id and looks the rest up.
    `pool_bytes`: fp32 pools, once per server and not per user.
    `paper_ratio_k`, `paper_ratio_v`: d_u/d, row numbers not counted; 1 without a pool.
    """

    kind: str
    user_dtype: str
    history_events: int
    cached_events: int
    compact: tuple[SizeRow, ...]
    full: tuple[SizeRow, SizeRow]
    item_features: tuple[SizeRow, ...]
    item_id: SizeRow | None
    pool_bytes: int
    paper_ratio_k: float
    paper_ratio_v: float
    users: int | None
    notes: tuple[str, ...]

    @property
    def compact_bytes(self) -> int:
        """The compact cache of one user, row numbers counted, history not."""
        return sum(row.bytes_per_user for row in self.compact)

    @property
    def record_bytes(self) -> int:
        """A stored record: header, compact cache, history."""
        history = sum(row.bytes_per_user for row in self.item_features)
        return HEADER_BYTES + self.compact_bytes + history

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The caches alone, then with the item ids, then with all item features."""
        fp16, fp32 = (row.bytes_per_user for row in self.full)
        return tuple(
            Comparison(name, self.compact_bytes + extra, fp16 + extra, fp32 + extra)
            for name, extra in self._extras()
        )

    def _extras(self) -> Iterator[tuple[str, int]]:
        yield "none", 0
        if self.item_id is not None:
            yield "item_id", self.item_id.bytes_per_user
        if self.item_features:
            yield "item_features", sum(row.bytes_per_user for row in self.item_features)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, the comparisons included."""
        data = asdict(self) | {"notes": list(self.notes)}
        for name in ("compact", "full", "item_features"):
            data[name] = [row.to_dict() for row in getattr(self, name)]
        data["item_id"] = self.item_id.to_dict() if self.item_id else None
        data["record_bytes"] = self.record_bytes
        data["comparisons"] = [c.to_dict(self.users) for c in self.comparisons]
        return data


def cache_sizes(
    spec: ModelSpec,
    user_dtype: str = "fp16",
    *,
    form: EventForm = FEATURES,
    history: int | None = None,
    users: int | None = None,
) -> CacheSizes:
    """Count the bytes that a server keeps for one user of `spec`.

    `user_dtype`: "fp32", "fp16" or "int8" user parts. `form`: how decode takes events.
    `history`: events of the user, `spec.max_len` unless told. `users`: adds totals. Raises
    `InputError` on another dtype or a negative number.

    Example: d = 256, d_u = 2, M = 10000 and fp16 cost 2 + 4 bytes an event for K and as
    many for V: 12 against 2048 bytes of fp32 K and V, 0.59%.
    """
    events = spec.max_len if history is None else history
    _check(user_dtype, history=events, users=users or 0)
    attention = spec.attention
    return CacheSizes(
        kind=spec.kind,
        user_dtype=user_dtype,
        history_events=events,
        cached_events=spec.cached_events(events),
        compact=compact_rows(spec, user_dtype, spec.cached_events(events)),
        full=full_rows(spec, spec.cached_events(events)),
        item_features=feature_rows(spec, form, events),
        item_id=id_row(spec, form, events),
        pool_bytes=pool_bytes(spec),
        paper_ratio_k=attention.user_k / attention.d,
        paper_ratio_v=attention.user_v / attention.d,
        users=users,
        notes=tuple(_notes(spec, user_dtype, form)),
    )


def _check(user_dtype: str, **counts: int) -> None:
    if user_dtype not in USER_DTYPES:
        allowed = ", ".join(USER_DTYPES)
        hint = nearest(user_dtype, USER_DTYPES)
        raise InputError(f"user_dtype must be one of {allowed}, got {user_dtype!r}{hint}")
    for name, number in counts.items():
        if number < 0:
            raise InputError(f"{name} must be at least 0, got {number}")


def users_per_gb(bytes_per_user: int) -> int | None:
    """Whole users in 10^9 bytes; None where a user costs nothing."""
    return GIGABYTE // bytes_per_user if bytes_per_user else None


def _notes(spec: ModelSpec, user_dtype: str, form: EventForm) -> Iterator[str]:
    attention = spec.attention
    yield f"A stored record is the cache, the history, and a header of {HEADER_BYTES} bytes."
    for side in ("k", "v"):
        width, name = attention.user_width(side), side.upper()
        if not attention.shared(side):
            yield f"{name} has no pool: all {width} numbers are stored for every event."
        if user_dtype == "int8" and 0 < width <= SCALE_BYTES:
            yield (
                f"int8 saves nothing on {name}: {width} + {SCALE_BYTES} bytes with the scale, "
                f"{2 * width} as fp16."
            )
    feature = item_id(spec)
    if feature is not None and id_row(spec, form, 0) is not None:
        yield (
            f"The long branch reads the whole history. {feature.name!r}, the first categorical "
            "item feature, is taken as the item id by which a server can look the others up."
        )

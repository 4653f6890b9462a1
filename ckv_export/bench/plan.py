"""What a user base needs: memory, bandwidth, cores or GPUs, with the arithmetic shown.

Whole numbers throughout, so that a billion users are counted exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from ckv_export.cache import CacheSizes, cache_sizes
from ckv_export.cache.record import HEADER_BYTES
from ckv_export.cache.units import bytes_text, count_text
from ckv_export.contract import ModelSpec
from ckv_export.errors import InputError
from ckv_export.manifest import Manifest

MOST_USERS = 10**9


@dataclass(frozen=True)
class Demand:
    """What is to be served.

    `requests`: a second, at the peak; `memory`: bytes of a server for caches; `link`: bytes a
    second between store and server; `utilisation`: percent of a core or GPU that is planned with,
    the rest is for bursts.
    """

    users: int
    history: int
    requests: int
    user_dtype: str = "fp16"
    memory: int = 512 * 10**9
    link: int = 12_500_000_000
    utilisation: int = 60

    def __post_init__(self) -> None:
        for name, least, most in (
            ("users", 1, MOST_USERS),
            ("history", 0, 10**7),
            ("requests", 1, 10**12),
            ("memory", 1, 10**18),
            ("link", 1, 10**15),
            ("utilisation", 1, 100),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(f"{name} must lie in {least} to {most:,}, got {value:,}")


@dataclass(frozen=True)
class Line:
    """One step of the arithmetic: what, how it was computed, and the number it gives."""

    what: str
    how: str
    value: int
    text: str


@dataclass(frozen=True)
class Plan:
    """All lines for one kind of cache."""

    cache: str
    lines: tuple[Line, ...]

    def value(self, what: str) -> int:
        """The number of a line."""
        return next(line.value for line in self.lines if line.what == what)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"cache": self.cache, "lines": [vars(line) for line in self.lines]}


@dataclass(frozen=True)
class Measured:
    """A way of a result of ``ckv-export bench``: whole nanoseconds of a request for one user.

    `threads`: cores that a call keeps for itself while it runs, where `device` is "cpu". `stored`:
    "fp32" or "fp16", what a fetched cache, or user parts of the compact one, were stored as.
    """

    name: str
    device: str
    cache: str
    nanoseconds: int
    threads: int = 1
    stored: str = "fp32"

    def serves_from(self, cache: str) -> bool:
        """Whether from a cache of that name: "compact" (or none at all), "full KV, fp16", ..."""
        if self.cache == "full, fetched":
            return cache == f"full KV, {self.stored}"
        return cache == "compact" and self.cache in ("compact", "none")


def whole_number(text: str) -> int:
    """Read ``1000000`` or ``1e9`` exactly; raises `InputError` for what is no whole number."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    # A comparison is exact at any size, arithmetic such as abs() is not.
    bounded = number.is_finite() and -(10**18) <= number <= 10**18
    if not bounded or number != number.to_integral_value():
        raise InputError(f"a whole number is written like 1000000 or 1e9, got {text!r}")
    return int(number)


def measured_ways(result: Mapping[str, Any], history: int) -> list[Measured]:
    """The ways of a result whose whole request was timed.

    Raises `InputError` where it was timed for another history length: costs don't scale.
    """
    settings = result["settings"]
    sizes = settings["sizes"]
    if sizes["history"] != history:
        raise InputError(
            f"the result was measured with histories of {sizes['history']} events, the plan is "
            f"for {history}: measure with --history {history}"
        )
    return [
        Measured(
            way["name"],
            way["device"],
            way["cache"],
            max(1, round(10**6 * way["phases"]["request"]["mean_ms"] / sizes["batch"])),
            settings["threads"],
            settings["stored"],
        )
        for way in result["ways"]
        if "request" in way["phases"]
    ]


def not_counted(manifest: Manifest, demand: Demand) -> str:
    """What else a server of this bundle keeps of every user, and what it may do without."""
    sizes = cache_sizes(manifest.model, form=manifest.form, history=demand.history)
    rows, ids = sizes.item_features, sizes.item_id
    history = sum(row.bytes_per_user for row in rows)
    beside = ", and with any cache and without one "
    beside += f"{', '.join(row.what for row in rows)}: {bytes_text(history)} a user"
    if ids is not None and ids.bytes_per_user < history:
        beside += f", {ids.what}: {bytes_text(ids.bytes_per_user)}"
    table = " With the bundle's item table no cache is kept, the history alone."
    return (
        f"Not counted: a record's header of {HEADER_BYTES} bytes{beside if history else ''}."
        f"{table if manifest.item_table else ''}"
    )


def plans(spec: ModelSpec, demand: Demand, measured: list[Measured] | None = None) -> list[Plan]:
    """A plan for the compact cache, then for K and V in fp16 and in fp32.

    Cores or GPUs are planned with those of `measured` that serve from such a cache.
    """
    sizes = cache_sizes(spec, demand.user_dtype, history=demand.history)
    kinds = [("compact", _compact_events(sizes), sizes.pool_bytes)]
    kinds += [(f"full KV, {r.dtype}", _how(r.bytes_per_event, r), 0) for r in sizes.full]
    return [
        Plan(
            name, (*_lines(sizes, demand, event, pool), *_processors(measured or [], name, demand))
        )
        for name, event, pool in kinds
    ]


Event = tuple[str, int]


def _compact_events(sizes: CacheSizes) -> Event:
    parts = [f"{row.bytes_per_event} {row.what} {row.dtype}" for row in sizes.compact]
    layers = sizes.full[0].layers
    each = layers * sum(row.bytes_per_event for row in sizes.compact)
    times = f"{layers} layers x " if layers > 1 else ""
    return f"{times}({' + '.join(parts)})", each


def _how(each: int, row: Any) -> Event:
    return f"{row.layers} layers x {each} {row.what} {row.dtype}", row.layers * each


def _lines(sizes: CacheSizes, demand: Demand, event: Event, pool: int) -> Iterator[Line]:
    how, each = event
    kept = sizes.cached_events
    yield _count("cached events per user", f"of {demand.history:,} events of history", kept)
    yield _bytes("bytes per event", how, each)
    user = kept * each
    yield _bytes("bytes per user", f"{kept:,} events x {each:,}", user)
    if user:
        yield _count("users per GB", f"1,000,000,000 / {user:,}, rounded down", 10**9 // user)
    total = demand.users * user
    yield _bytes("all users", f"{demand.users:,} users x {user:,}", total)
    yield from _servers(demand, user, pool)
    moved = demand.requests * user
    yield _bytes("fetched per second", f"{demand.requests:,} requests x {user:,}", moved, "/s")
    how = f"{moved:,} / {demand.link:,} a second, rounded up"
    yield _count("links", how, _up(moved, demand.link))


def _servers(demand: Demand, user: int, pool: int) -> Iterator[Line]:
    """How many hold all users of `user` bytes, each of them whole, beside `pool` bytes."""
    room = demand.memory - pool
    if room < max(user, 1):
        raise InputError(
            f"a server of {bytes_text(demand.memory)} holds no user beside pools of "
            f"{bytes_text(pool)}: give more --memory"
        )
    if not user:
        yield _count("servers for memory", "nothing is cached", 0)
        return
    pools = f" less {pool:,} of pools" if pool else ""
    fitting = room // user
    how = f"({demand.memory:,}{pools}) / {user:,}, rounded down"
    yield _count("users per server", how, fitting)
    how = f"{demand.users:,} users / {fitting:,}, rounded up"
    yield _count("servers for memory", how, _up(demand.users, fitting))


def _processors(measured: list[Measured], cache: str, demand: Demand) -> Iterator[Line]:
    return (_processor(way, demand) for way in measured if way.serves_from(cache))


def _stored_otherwise(way: Measured, demand: Demand) -> str:
    """What to know of a time that was taken from other records than the plan's."""
    if way.cache != "compact" or way.stored == demand.user_dtype:
        return ""
    return f", measured with user parts in {way.stored}"


def _processor(way: Measured, demand: Demand) -> Line:
    on_cpu = way.device == "cpu"
    busy = demand.requests * way.nanoseconds * (way.threads if on_cpu else 1)
    threads = f" x {way.threads} threads" if on_cpu and way.threads > 1 else ""
    how = (
        f"{demand.requests:,} requests x {way.nanoseconds:,} ns{threads} / (1,000,000,000 ns x "
        f"{demand.utilisation}%), rounded up{_stored_otherwise(way, demand)}"
    )
    value = _up(100 * busy, demand.utilisation * 10**9)
    return _count(f"{'cores' if on_cpu else 'GPUs'}: {way.name}", how, value)


def _up(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def _count(what: str, how: str, value: int) -> Line:
    return Line(what, how, value, count_text(value))


def _bytes(what: str, how: str, value: int, per: str = "") -> Line:
    return Line(what, how, value, bytes_text(value) + per)

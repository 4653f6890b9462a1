"""Stores by address."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from ckv_export.errors import InputError, nearest
from ckv_export.store.base import Store
from ckv_export.store.redis import RedisStore
from ckv_export.store.sqlite import SqliteStore

FORMS = "sqlite:///FILE or redis://HOST:PORT/DB"
_OPTIONS = {
    "sqlite": ("prefix", "ttl", "timeout", "synchronous"),
    "redis": ("prefix", "ttl", "timeout"),
}
_SYNCHRONOUS = ("normal", "full")


def open_store(url: str) -> Store:
    """Open ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``redis://host:6379/0``.

    Options stand behind a question mark: ``prefix`` (of all keys, "ckv"), ``ttl`` (seconds that a
    record lives after its last write, for ever unless given), ``timeout`` (seconds of one call),
    and for SQLite ``synchronous`` (normal or full). ``rediss`` and ``unix`` addresses of Redis work
    too, and what else redis-py takes as an option is passed on to it.

    Raises `InputError` for another address, `StoreError` where nothing answers there.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return _sqlite(url, parts)
    if parts.scheme in ("redis", "rediss", "unix"):
        return _redis(parts)
    raise InputError(f"a store's address must be {FORMS}, got {url!r}")


def _sqlite(url: str, parts: SplitResult) -> Store:
    path = parts.path[1:]
    if parts.netloc or not path:
        raise InputError(
            f"a store in a file must be sqlite:///FILE (sqlite:////FILE for an absolute path), "
            f"got {url!r}"
        )
    given = dict(parse_qsl(parts.query))
    for name in given:
        if name not in _OPTIONS["sqlite"]:
            allowed = ", ".join(_OPTIONS["sqlite"])
            hint = nearest(name, _OPTIONS["sqlite"])
            raise InputError(f"a SQLite store has the options {allowed}, got {name!r}{hint}")
    synchronous = given.get("synchronous", "normal")
    if synchronous not in _SYNCHRONOUS:
        raise InputError(f"synchronous must be one of normal, full, got {synchronous!r}")
    return SqliteStore(
        Path(path),
        given.get("prefix", "ckv"),
        _seconds(given, "ttl"),
        _seconds(given, "timeout") or 10.0,
        synchronous,
    )


def _redis(parts: SplitResult) -> Store:
    given = dict(parse_qsl(parts.query))
    rest = {name: value for name, value in given.items() if name not in _OPTIONS["redis"]}
    return RedisStore(
        urlunsplit(parts._replace(query=urlencode(rest))),
        _shown(parts),
        given.get("prefix", "ckv"),
        _seconds(given, "ttl"),
        _seconds(given, "timeout") or 2.0,
    )


def _shown(parts: SplitResult) -> str:
    """The address without user and password."""
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=host, query=""))


def _seconds(options: dict[str, str], name: str) -> float | None:
    if name not in options:
        return None
    try:
        seconds = float(options[name])
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds < 1e10:
        raise InputError(
            f"the store's {name} must be a number of seconds of at least 0.001, "
            f"got {options[name]!r}"
        )
    return seconds

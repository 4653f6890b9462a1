"""Stores by address."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from ckv_export.errors import InputError, nearest
from ckv_export.store.base import Store
from ckv_export.store.redis import RedisStore
from ckv_export.store.sqlite import SqliteStore

FORMS = "sqlite:///FILE or redis://HOST:PORT/DB"
_OPTIONS = ("prefix", "ttl", "timeout")
_REDIS = ("redis", "rediss", "unix")
_SYNCHRONOUS = ("normal", "full")
_SQLITE_SECONDS, _REDIS_SECONDS = 10.0, 2.0


def open_store(url: str) -> Store:
    """Open ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``redis://host:6379/0``.

    Options stand behind a question mark: ``prefix`` (of all keys, "ckv"), ``ttl`` (seconds that a
    record lives after its last write, for ever unless given), ``timeout`` (seconds of one call),
    and for SQLite ``synchronous`` (normal or full). ``rediss`` and ``unix`` addresses of Redis work
    too, and what else redis-py takes as an option is passed on to it.

    Raises `InputError` for another address, `StoreError` where nothing answers there.
    """
    check_address(url)
    parts = urlsplit(url)
    given = dict(parse_qsl(parts.query))
    prefix = given.get("prefix", "ckv")
    ttl, timeout = (_seconds(given, name) for name in ("ttl", "timeout"))
    if parts.scheme == "sqlite":
        mode = given.get("synchronous", _SYNCHRONOUS[0])
        return SqliteStore(Path(parts.path[1:]), prefix, ttl, timeout or _SQLITE_SECONDS, mode)
    rest = urlencode({name: value for name, value in given.items() if name not in _OPTIONS})
    address = urlunsplit(parts._replace(query=rest))
    return RedisStore(address, _shown(parts), prefix, ttl, timeout or _REDIS_SECONDS)


def check_address(url: str) -> None:
    """Raise `InputError` unless `url` is one that `open_store` could open, without opening it."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"a store's address must be {FORMS}, got {url!r}: {error}") from error
    given = dict(parse_qsl(parts.query))
    if parts.scheme == "sqlite":
        _check_file(url, parts, given)
    elif parts.scheme not in _REDIS:
        raise InputError(f"a store's address must be {FORMS}, got {url!r}")
    for name in ("ttl", "timeout"):
        _seconds(given, name)


def _check_file(url: str, parts: SplitResult, given: dict[str, str]) -> None:
    if parts.netloc or not parts.path[1:]:
        raise InputError(
            f"a store in a file must be sqlite:///FILE (sqlite:////FILE for an absolute path), "
            f"got {url!r}"
        )
    allowed = (*_OPTIONS, "synchronous")
    for name in given:
        if name not in allowed:
            raise InputError(
                f"a SQLite store has the options {', '.join(allowed)}, got {name!r}"
                f"{nearest(name, allowed)}"
            )
    synchronous = given.get("synchronous", _SYNCHRONOUS[0])
    if synchronous not in _SYNCHRONOUS:
        raise InputError(
            f"synchronous must be one of {', '.join(_SYNCHRONOUS)}, got {synchronous!r}"
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

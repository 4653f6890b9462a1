"""Stores by address."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

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
    file, parts = store_file(url), urlsplit(url)
    given = _given(parts)
    prefix = given.get("prefix", "ckv")
    ttl, timeout = (_seconds(given, name) for name in ("ttl", "timeout"))
    if file is not None:
        mode = given.get("synchronous", _SYNCHRONOUS[0])
        return SqliteStore(file, prefix, ttl, timeout or _SQLITE_SECONDS, mode)
    rest = urlencode({name: value for name, value in given.items() if name not in _OPTIONS})
    # Put together by hand: urlunsplit leaves the // out of unix:///path.
    plain = f"{parts.scheme}://{parts.netloc}{parts.path}"
    address = f"{plain}?{rest}" if rest else plain
    return RedisStore(address, _shown(plain), prefix, ttl, timeout or _REDIS_SECONDS)


def store_file(url: str) -> Path | None:
    """The file of a store in SQLite, None of another; raises `InputError` as `check_address`."""
    check_address(url)
    parts = urlsplit(url)
    return Path(parts.path[1:]) if parts.scheme == "sqlite" else None


def check_address(url: str) -> None:
    """Raise `InputError` unless `url` is one that `open_store` could open, without opening it."""
    try:
        url.encode()  # a command line can hold half a character
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(
            f"a store's address must be {FORMS}, got {_shown(url)!r}: {error}"
        ) from error
    given = _given(parts)
    if parts.scheme == "sqlite":
        _check_file(url, parts, given)
    elif parts.scheme in _REDIS:
        _check_server(url, parts)
    else:
        raise InputError(f"a store's address must be {FORMS}, got {_shown(url)!r}")
    for name in ("ttl", "timeout"):
        _seconds(given, name)


def _given(parts: SplitResult) -> dict[str, str]:
    """The options of an address; one without a value has "", which no check takes for absent."""
    return dict(parse_qsl(parts.query, keep_blank_values=True))


def _check_file(url: str, parts: SplitResult, given: dict[str, str]) -> None:
    if parts.netloc or not parts.path[1:]:
        raise InputError(
            f"a store in a file must be sqlite:///FILE (sqlite:////FILE for an absolute path), "
            f"got {url!r}"
        )
    if "#" in url:
        raise InputError(f"a store's file must have no # in its path, got {url!r}")
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


def _check_server(url: str, parts: SplitResult) -> None:
    """What redis-py would take for another address, or for database 0."""
    split = "@" not in parts.netloc and "@" in f"{parts.path}{parts.query}"
    if parts.fragment or (split and parts.scheme != "unix"):
        raise InputError(
            "a store's address is read up to the first of / ? #: write them in a user name or "
            f"password as %2F, %3F and %23, got {_shown(url)!r}"
        )
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise InputError(
            f"a Redis database must be a whole number (redis://HOST:PORT/DB), got {database!r}"
        )


def _shown(url: str) -> str:
    """The address without user and password, wherever it was meant to end."""
    return re.sub("(?<=//).*@", "", url, flags=re.DOTALL)


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

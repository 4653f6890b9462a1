"""A store in Redis: for several servers that share their users.

A key ``<prefix>:user:<id>`` each. A write is a script that compares the revision and then sets the
key, which Redis runs without anything between. What a Redis server keeps over its own restart is
its own setting: with ``appendonly yes`` and ``appendfsync always`` every acknowledged write.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

from ckv_export.errors import MissingDependency, StoreError
from ckv_export.store.base import KeyedWrite, Store
from ckv_export.store.entry import REVISION_AT, REVISION_BYTES

T = TypeVar("T")

# ARGV: "=" to compare or "*", the expected revision ("" for no such key), milliseconds to live or
# "", the new value's start, where its middle begins and ends in the old value ("" and "" for none),
# and its end. The string is made anew: APPEND would reserve twice its size for good.
_WRITE = f"""
if ARGV[1] == '=' and
   redis.call('GETRANGE', KEYS[1], {REVISION_AT}, {REVISION_AT + REVISION_BYTES - 1}) ~= ARGV[2]
then return 0 end
local value = ARGV[4]
if ARGV[5] ~= '' then
  value = value .. redis.call('GETRANGE', KEYS[1], ARGV[5], ARGV[6]) .. ARGV[7]
end
if ARGV[3] == '' then redis.call('SET', KEYS[1], value)
else redis.call('SET', KEYS[1], value, 'PX', ARGV[3]) end
return 1
"""


class RedisStore(Store):
    """See the module. `ttl`: seconds after its last write that a record lives, None for ever.

    `url`: as redis-py takes it. `timeout`: seconds that one call may take.
    """

    def __init__(
        self,
        url: str,
        where: str,
        prefix: str = "ckv",
        ttl: float | None = None,
        timeout: float = 2.0,
    ) -> None:
        super().__init__(where)
        self.prefix, self.ttl = prefix, ttl
        self._redis = _module()
        # A write sent again would find its own first sending, and pass for one that came too late.
        once = self._redis.retry.Retry(self._redis.backoff.NoBackoff(), 0)
        self._evicted_before = 0
        try:
            self._client: Any = self._redis.Redis.from_url(
                url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=once
            )
            # Of an option that it doesn't know, redis-py says so when it first connects.
            self._evicted_before = self.evictions()
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(f"{where} is no address of a Redis server: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _get(self, keys: Sequence[str]) -> list[bytes | None]:
        names = [f"{self.prefix}:{key}" for key in keys]
        return list(self._call(lambda: self._client.mget(names)))

    def _put(self, writes: Sequence[KeyedWrite]) -> list[bool]:
        milliseconds = "" if self.ttl is None else str(int(self.ttl * 1000))

        def send() -> list[int]:
            # The script travels with each write: a server that was restarted has forgotten it.
            pipeline = self._client.pipeline(transaction=False)
            for write in writes:
                mode = "*" if write.expected is None else "="
                name = f"{self.prefix}:{write.key}"
                condition = mode, write.expected or b"", milliseconds
                pipeline.eval(_WRITE, 1, name, *condition, *_pieces(write))
            return list(pipeline.execute())

        return [bool(happened) for happened in self._call(send)]

    def _delete(self, keys: Sequence[str]) -> int:
        names = [f"{self.prefix}:{key}" for key in keys]
        return int(self._call(lambda: self._client.delete(*names)))

    def evictions(self) -> int:
        """See `Store`."""
        stats = self._call(lambda: self._client.info("stats"), writing=False)
        return int(stats["expired_keys"] + stats["evicted_keys"]) - self._evicted_before

    def _call(self, action: Callable[[], T], writing: bool = True) -> T:
        """Do `action`. `writing`: it may be part of a request that has written, if only by reading.

        Raises `StoreError`.
        """
        try:
            return action()
        except (self._redis.RedisError, OSError) as error:
            doubt = "; a write that was under way may or may not have happened" if writing else ""
            sentence = f"the store {self.where} can't be used: {_sentence(error)}{doubt}"
            raise StoreError(sentence) from error


def _pieces(write: KeyedWrite) -> tuple[bytes | int, ...]:
    """The last four arguments of `_WRITE`."""
    kept, value = write.kept, write.value
    if kept is None:
        return value, b"", b"", b""
    last = kept.old + kept.length - 1
    return value[: kept.new], kept.old, last, value[kept.new + kept.length :]


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _module() -> ModuleType:
    try:
        return importlib.import_module("redis")
    except ImportError as error:
        if error.name != "redis":
            raise StoreError(f"the package redis can't be loaded: {error}") from error
        raise MissingDependency("redis", "a store in Redis", "redis") from error

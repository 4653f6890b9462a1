"""The interface of a store: read, write if unchanged, delete, count."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from ckv_export.store.entry import Entry


@dataclass(frozen=True)
class Kept:
    """A run of bytes that a record takes over from the one before: `length` from `old` to `new`."""

    old: int
    new: int
    length: int


@dataclass(frozen=True)
class Change:
    """Write `entry` for `user` if what is stored is still `before`, None for nothing.

    `force`: write whatever is there. `kept`: which bytes of the record are those of the record of
    `before`; a store on another machine is not sent them again.
    """

    user: str
    entry: Entry
    before: Entry | None = None
    force: bool = False
    kept: Kept | None = None


@dataclass(frozen=True)
class KeyedWrite:
    """A change as a backend takes it.

    `expected`: revision of what must be there, b"" for nothing, None for no condition. `kept`: of
    `value`, counted from its start.
    """

    key: str
    expected: bytes | None
    value: bytes
    kept: Kept | None = None

    @classmethod
    def of(cls, change: Change) -> KeyedWrite:
        """The write that makes `change`."""
        before, kept = change.before, None
        if change.kept is not None and before is not None and not change.force:
            old, new = before.head_bytes, change.entry.head_bytes
            kept = Kept(change.kept.old + old, change.kept.new + new, change.kept.length)
        expected = b"" if before is None else before.revision
        return cls(
            f"user:{change.user}", None if change.force else expected, change.entry.pack(), kept
        )


@dataclass
class Counters:
    """What this process did with the store since it opened it.

    `hits`, `misses`: users read who had a record, or none. `writes`, `conflicts`: changes that
    happened, or did not because somebody else wrote first. Bytes are those of whole records.
    """

    hits: int = 0
    misses: int = 0
    writes: int = 0
    conflicts: int = 0
    deletes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


class Store(abc.ABC):
    """Records of users, by user id. Threads may share one; so may processes, each its own `Store`.

    Every method raises `StoreError` where the store can't be reached. A write that raised may have
    happened: read again before repeating it (`Entry.tokens` tells).

    `where`: its address without a password. A backend implements `_get`, `_put`, `_delete`,
    `evictions` and `close`.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._counters = Counters()

    def read(self, users: Sequence[str]) -> list[Entry | None]:
        """The entries of `users` in their order, None for one who has none; one round trip.

        Raises `RecordError` where what is stored of one of them is no entry.
        """
        values = self._get([f"user:{user}" for user in users]) if users else []
        found = sum(value is not None for value in values)
        self._counters.hits += found
        self._counters.misses += len(values) - found
        self._counters.bytes_read += sum(len(value) for value in values if value is not None)
        return [
            None if value is None else Entry.unpack(value, f"user {user!r}")
            for user, value in zip(users, values, strict=True)
        ]

    def write(self, changes: Sequence[Change]) -> list[bool]:
        """Make each change for which nobody wrote first; whether it happened. One round trip.

        A second change of the same user in one call finds the first.
        """
        writes = [KeyedWrite.of(change) for change in changes]
        done = self._put(writes) if writes else []
        self._counters.writes += sum(done)
        self._counters.conflicts += len(done) - sum(done)
        self._counters.bytes_written += sum(
            len(write.value) for write, happened in zip(writes, done, strict=True) if happened
        )
        return done

    def delete(self, users: Sequence[str]) -> int:
        """Forget `users`; how many of them had a record."""
        deleted = self._delete([f"user:{user}" for user in users]) if users else 0
        self._counters.deletes += deleted
        return deleted

    def note(self, name: str) -> bytes | None:
        """What `put_note` kept under `name`: state of a job."""
        return self._get([f"note:{name}"])[0]

    def put_note(self, name: str, value: bytes) -> None:
        """Keep `value` under `name`, apart from all users, as long as a record."""
        self._put([KeyedWrite(f"note:{name}", None, value)])

    def counters(self) -> Counters:
        """A copy of the counters."""
        return dataclasses.replace(self._counters)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abc.abstractmethod
    def evictions(self) -> int:
        """Records dropped since the store was opened: expired ones or, in Redis, for memory.

        A SQLite store counts those that it dropped itself, a Redis server those of all its users.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what the store holds open."""

    @abc.abstractmethod
    def _get(self, keys: Sequence[str]) -> list[bytes | None]: ...

    @abc.abstractmethod
    def _put(self, writes: Sequence[KeyedWrite]) -> list[bool]:
        """Revisions stand at their place in `Entry.pack`."""

    @abc.abstractmethod
    def _delete(self, keys: Sequence[str]) -> int: ...

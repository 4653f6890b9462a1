"""A store in one SQLite file: for one machine, however many processes.

In write-ahead mode readers never wait, a process that is killed at any moment loses at most the
write it was in, and the file is sound when it is next opened. With ``synchronous=normal`` a power
cut may also lose the last writes, with ``synchronous=full`` it doesn't.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckv_export.errors import StoreError
from ckv_export.store.base import KeyedWrite, Store
from ckv_export.store.entry import REVISION_AT, REVISION_BYTES

_TABLE = """
CREATE TABLE IF NOT EXISTS entries (
    key TEXT PRIMARY KEY, revision BLOB NOT NULL, expires REAL, value BLOB NOT NULL
)"""
_INDEX = "CREATE INDEX IF NOT EXISTS by_expiry ON entries (expires) WHERE expires IS NOT NULL"
# No more expired rows are deleted by one write, so that none takes long.
_PURGED_AT_ONCE = 64
# SQLite takes some 32,000 parameters in one statement.
_KEYS_AT_ONCE = 5000


class SqliteStore(Store):
    """See the module. `ttl`: seconds after its last write that a record lives, None for ever.

    `timeout`: seconds that a write waits for the writes of others.
    """

    def __init__(
        self,
        path: Path,
        prefix: str = "ckv",
        ttl: float | None = None,
        timeout: float = 10.0,
        synchronous: str = "normal",
    ) -> None:
        super().__init__(f"sqlite:///{path}")
        self.path, self.prefix, self.ttl, self.timeout = path, prefix, ttl, timeout
        self.synchronous = synchronous
        self._lock = threading.Lock()
        self._expired = 0
        self._process = 0
        self._connection: Any = None
        self._inherited: list[Any] = []
        with self._connected():
            pass

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._process == os.getpid():
                self._connection.close()
            self._process = 0

    def _get(self, keys: Sequence[str]) -> list[bytes | None]:
        found: dict[str, bytes] = {}
        full = [f"{self.prefix}:{key}" for key in keys]
        with self._connected() as connection:
            for start in range(0, len(full), _KEYS_AT_ONCE):
                some = full[start : start + _KEYS_AT_ONCE]
                marks = ",".join("?" * len(some))
                found |= connection.execute(
                    f"SELECT key, value FROM entries WHERE key IN ({marks}) "
                    "AND (expires IS NULL OR expires > ?)",
                    [*some, time.time()],
                ).fetchall()
        return [found.get(key) for key in full]

    def _put(self, writes: Sequence[KeyedWrite]) -> list[bool]:
        now = time.time()
        expires = None if self.ttl is None else now + self.ttl
        with self._connected() as connection, _transaction(connection):
            self._purge(connection, now)
            return [self._write(connection, write, now, expires) for write in writes]

    def _purge(self, connection: sqlite3.Connection, now: float) -> None:
        self._expired += connection.execute(
            "DELETE FROM entries WHERE key IN (SELECT key FROM entries WHERE expires <= ? LIMIT ?)",
            (now, _PURGED_AT_ONCE),
        ).rowcount

    def _write(
        self, connection: sqlite3.Connection, write: KeyedWrite, now: float, expires: float | None
    ) -> bool:
        key, expected = f"{self.prefix}:{write.key}", write.expected
        revision = write.value[REVISION_AT : REVISION_AT + REVISION_BYTES]
        row = (revision, expires, write.value)
        if not expected:
            # An expired row that no purge has reached yet is as good as none.
            where = "" if expected is None else "WHERE entries.expires <= ?"
            return bool(
                connection.execute(
                    "INSERT INTO entries (key, revision, expires, value) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, "
                    f"expires = excluded.expires, value = excluded.value {where}",
                    (key, *row, *([] if expected is None else [now])),
                ).rowcount
            )
        return bool(
            connection.execute(
                "UPDATE entries SET revision = ?, expires = ?, value = ? WHERE key = ? "
                "AND revision = ? AND (expires IS NULL OR expires > ?)",
                (*row, key, expected, now),
            ).rowcount
        )

    def _delete(self, keys: Sequence[str]) -> int:
        now = time.time()
        with self._connected() as connection, _transaction(connection):
            return sum(
                connection.execute(
                    "DELETE FROM entries WHERE key = ? AND (expires IS NULL OR expires > ?)",
                    (f"{self.prefix}:{key}", now),
                ).rowcount
                for key in keys
            )

    def evictions(self) -> int:
        """See `Store`."""
        return self._expired

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """The connection of this process; SQLite's must not cross a fork."""
        with self._lock:
            try:
                if self._process != os.getpid():
                    # Not even closed: that is for the process that opened it.
                    self._inherited.append(self._connection)
                    self._connection = self._open()
                    self._process = os.getpid()
                yield self._connection
            except sqlite3.Error as error:
                raise StoreError(f"the store {self.where} can't be used: {error}") from error

    def _open(self) -> sqlite3.Connection:
        # As bytes: the Python of Triton's backend takes no text with an accent for a path.
        path = str(self.path).encode(errors="surrogateescape")
        connection = sqlite3.connect(
            path, self.timeout, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self.synchronous}")
            connection.execute(_TABLE)
            connection.execute(_INDEX)
        except BaseException:
            connection.close()
            raise
        return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of the block or nothing; the lock on writing is taken at its start, not halfway."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors, a full disk among them, SQLite has done so itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise

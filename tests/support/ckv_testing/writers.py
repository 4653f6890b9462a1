"""Processes that write into a store: where another process can import them."""

from __future__ import annotations

from typing import Protocol

from ckv_export.store import Change, Entry, Kept, open_store, token_of


class Signal(Protocol):
    """An event of threads or of processes."""

    def set(self) -> None: ...


def add(url: str, name: str, users: list[str], times: int) -> None:
    """Append a byte to a user's record, again and again, as a server would."""
    with open_store(url) as store:
        for i in range(times):
            user = users[i % len(users)]
            while True:
                before = store.read([user])[0]
                old = before or Entry(b"")
                record = old.record + name.encode()
                entry = old.followed_by(record, 1, token_of(name, str(i)))
                kept = Kept(0, 0, len(old.record))
                if store.write([Change(user, entry, before, kept=kept)])[0]:
                    break


def write_for_ever(url: str, ready: Signal) -> None:
    """Rewrite two users together, whose records must stay the same."""
    with open_store(url) as store:
        i = 0
        while True:
            record = str(i).encode() * 3000
            store.write([Change(user, Entry(record, i), force=True) for user in ("u", "v")])
            i += 1
            if i == 5:
                ready.set()

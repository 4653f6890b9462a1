"""Stores filled from a file of histories."""

from __future__ import annotations

from pathlib import Path

from ckv_export.bulk.fill import FillOptions, Tally, fill_store
from ckv_export.store import open_store
from ckv_testing.serving import Shop, User


def quiet(total: Tally, users: int) -> None:
    assert total.users <= users


def filled(shop: Shop, events: Path, store: str, **more: object) -> Tally:
    options = FillOptions(shop.folder, events, store, user_dtype="float32", threads=1, **more)  # type: ignore[arg-type]
    return fill_store(options, quiet)


def records(shop: Shop, store: str, users: dict[str, User]) -> dict[str, bytes | None]:
    with open_store(store) as opened:
        entries = opened.read(list(users))
    return {user: entry and entry.record for user, entry in zip(users, entries, strict=True)}

"""Files of histories for bulk prefill."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ckv_testing.serving import Shop, User


def write_parquet(path: Path, shop: Shop, users: Mapping[str, User], rows: int) -> None:
    """A row for each user, lists as long as histories are; `rows` in a group."""
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, object] = {"user_id": list(users)}
    for name in shop.given("event", next(iter(users.values())).events):
        histories = [user.events[name.removeprefix("event_")] for user in users.values()]
        columns[name] = pa.array([h.tolist() for h in histories])
        empty = pa.types.is_null(columns[name].type.value_type)  # type: ignore[attr-defined]
        if empty:
            columns[name] = pa.array([h.tolist() for h in histories], pa.list_(pa.int32()))
    parquet.write_table(pa.table(columns), path, row_group_size=rows)


def write_npz(path: Path, shop: Shop, users: Mapping[str, User]) -> None:
    """Rectangular arrays, every history right-aligned behind padding, and the mask of it."""
    longest = max(user.count for user in users.values())
    arrays: dict[str, np.ndarray] = {"user_id": np.array(list(users))}
    lengths = np.array([user.count for user in users.values()])
    arrays["event_mask"] = np.arange(longest) >= longest - lengths[:, None]
    for name, example in shop.given("event", next(iter(users.values())).events).items():
        made = np.zeros((len(users), longest, *example.shape[1:]), example.dtype)
        for row, user in zip(made, users.values(), strict=True):
            row[longest - user.count :] = user.events[name.removeprefix("event_")]
        arrays[name] = made
    np.savez(path, **arrays)


def some_users(
    shop: Shop, count: int, rng: np.random.Generator, longest: int = 20
) -> dict[str, User]:
    """Users with histories of every length up to `longest`, some without any."""
    lengths = rng.permutation(np.resize(np.arange(longest + 1), count))
    return {f"user {i}": shop.user(int(n), rng) for i, n in enumerate(lengths)}


def clear_users(shop: Shop, count: int, rng: np.random.Generator) -> dict[str, User]:
    """The same, all of whose rows are the reference's in any arithmetic."""
    users = some_users(shop, count, rng)
    for user in users.values():
        events, user.events = user.count, shop.draw(0, rng)
        shop.grow(user, shop.next(user, events, rng))
    return users

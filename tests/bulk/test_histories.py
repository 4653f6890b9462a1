"""Files of histories: read in pieces, and refused where they don't fit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.filling import filled, records
from ckv_testing.histories import some_users, write_npz, write_parquet
from ckv_testing.serving import Shop, User

from ckv_export.bulk import histories
from ckv_export.bulk.histories import open_histories
from ckv_export.errors import EventsError, MissingDependency

pa = pytest.importorskip("pyarrow", reason="the package pyarrow is not installed")
from pyarrow import parquet  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_file_is_never_in_memory_whole(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(histories, "PIECE", 7)
    shop, path = shops("sim"), tmp_path / "h.parquet"
    users = some_users(shop, 30, rng)
    write_parquet(path, shop, users, rows=20)
    file = open_histories(path, shop.manifest)
    sizes = [[len(piece.users) for piece in file.read(g)] for g in range(file.groups)]
    assert sizes == [[7, 7, 6], [7, 3]]


# -- files that don't fit


BAD = {
    "no user": ("lacks the column 'user_id'", lambda t: t.drop_columns(["user_id"])),
    "no feature": ("lacks the column 'event_item_id'", lambda t: t.drop_columns(["event_item_id"])),
    "no list": (
        "must be a column of lists, got int64",
        lambda t: t.set_column(1, "event_item_id", pa.array([1, 2, 3])),
    ),
    "lengths": (
        "the history of user 'b' has 2 events, but 1 in 'event_mask'",
        lambda t: t.set_column(2, "event_mask", pa.array([[1], [1], [1, 1, 1]])),
    ),
    "null": (
        r"holds a null \(users 'a' to 'c'\)",
        lambda t: t.set_column(1, "event_item_id", pa.array([[1], None, [1, 2, 3]])),
    ),
    "null id": (
        r"holds a null \(users 'a' to 'c'\)",
        lambda t: t.set_column(1, "event_item_id", pa.array([[1], [1, None], [1, 2, 3]])),
    ),
    "an id too many": (
        r"must lie in .* got 1000000 \(users 'a' to 'c'\)",
        lambda t: t.set_column(1, "event_item_id", pa.array([[1], [1, 10**6], [1, 2, 3]])),
    ),
    "twice": (
        "two histories of user 'a'",
        lambda t: t.set_column(0, "user_id", pa.array(["a", "b", "a"])),
    ),
    "nobody": (
        "missing or empty",
        lambda t: t.set_column(0, "user_id", pa.array(["a", None, "c"])),
    ),
    "nobody by name": (
        "missing or empty",
        lambda t: t.set_column(0, "user_id", pa.array(["a", "", "c"])),
    ),
    "no id but a bool": (
        "a text or a whole number, got True",
        lambda t: t.set_column(0, "user_id", pa.array([True, False, None])),
    ),
    "no text": (
        "must be text in UTF-8",
        lambda t: t.set_column(0, "user_id", pa.array([b"a", b"\xff", b"c"])),
    ),
    "a number with a fraction": (
        "a text or a whole number, got 1.0",
        lambda t: t.set_column(0, "user_id", pa.array([1.0, 2.0, 3.0])),
    ),
    "several ids": (
        r"a text or a whole number, got \['a'\]",
        lambda t: t.set_column(0, "user_id", pa.array([["a"], ["b"], ["c"]])),
    ),
    "records for ids": (
        "must hold lists of numbers or vectors, got struct",
        lambda t: t.set_column(1, "event_item_id", pa.array([[{"x": 1}]] * 3)),
    ),
    "a column twice": (
        "has 2 columns called 'event_item_id'",
        lambda t: t.append_column("event_item_id", t.column("event_item_id")),
    ),
}


def good_table() -> object:
    """Of a shop whose events are ids."""
    ids, mask = [[1], [1, 2], [1, 2, 3]], [[1], [1, 0], [0, 0, 0]]
    return pa.table({"user_id": ["a", "b", "c"], "event_item_id": ids, "event_mask": mask})


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_does_not_fit_is_refused(
    shops: Callable[[str], Shop], tmp_path: Path, case: str
):
    shop, path = shops("items"), tmp_path / "h.parquet"
    says, spoil = BAD[case]
    parquet.write_table(spoil(good_table()), path)
    store = f"sqlite:///{tmp_path / 'users.db'}"
    with pytest.raises(EventsError, match=says):
        filled(shop, path, store)
    parquet.write_table(good_table(), path)
    assert filled(shop, path, store).events == 2


def test_a_damaged_page_is_refused_where_it_is_read(shops: Callable[[str], Shop], tmp_path: Path):
    shop, path = shops("items"), tmp_path / "h.parquet"
    parquet.write_table(good_table(), path, compression="snappy", use_dictionary=False)
    column = parquet.ParquetFile(path).metadata.row_group(0).column(1)
    data = bytearray(path.read_bytes())
    end = column.data_page_offset + column.total_compressed_size
    data[end - 20 : end - 8] = b"\xff" * 12
    path.write_bytes(data)
    file = open_histories(path, shop.manifest)
    with pytest.raises(EventsError, match=r"can't be read as a \.parquet table"):
        list(file.read(0))


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_a_user_twice_is_refused_wherever_the_rows_stand_and_nothing_is_written(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch, kind: str,
):  # fmt: skip
    monkeypatch.setattr(histories, "PIECE", 4)
    # Two users of one digest are still two, and found to be so.
    monkeypatch.setattr(histories, "hash", len, raising=False)
    shop, path = shops("items"), tmp_path / f"h.{kind}"
    store = f"sqlite:///{tmp_path / 'users.db'}"

    def write(column: list[str], users: dict[str, User]) -> None:
        if kind == "npz":
            write_npz(path, shop, users)
            arrays = dict(np.load(path)) | {"user_id": np.array(column)}
            np.savez(path, **arrays)
        else:
            write_parquet(path, shop, users, rows=6)
            table = parquet.read_table(path)
            table = table.set_column(0, "user_id", pa.array(column))
            parquet.write_table(table, path, row_group_size=6)

    users = some_users(shop, 15, rng)
    names = list(users)
    for first, second in [(0, 5), (1, 9), (13, 14)]:
        write([names[first] if i == second else n for i, n in enumerate(names)], users)
        with pytest.raises(EventsError, match=f"two histories of user {names[first]!r}"):
            filled(shop, path, store)
    assert set(records(shop, store, users).values()) == {None}
    write(names, users)
    assert filled(shop, path, store).users == 15


def with_lists(table: object, vector: str, change: Callable[[object], object]) -> object:
    """The table with `change` made to its column of vectors."""
    place = table.column_names.index(vector)
    return table.set_column(place, vector, change(table[vector].combine_chunks()))


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (pa.large_list, lambda kind, width: pa.large_list(kind)),
        (pa.list_, lambda kind, width: pa.large_list(kind)),
        (pa.list_, pa.list_),
    ],
    ids=["large of large", "of large", "of fixed"],
)
def test_lists_of_every_kind_are_read_alike(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator, outer: Callable,
    inner: Callable,
):  # fmt: skip
    shop, path = shops("sim"), tmp_path / "h.parquet"
    write_parquet(path, shop, some_users(shop, 9, rng), rows=9)
    (plain,) = open_histories(path, shop.manifest).read(0)
    table = parquet.read_table(path)
    for tensor in open_histories(path, shop.manifest).tensors:
        kind = table[tensor.name].type.value_type
        kind = inner(kind.value_type, tensor.axes[1]) if len(tensor.axes) > 1 else kind
        table = with_lists(table, tensor.name, lambda c, kind=kind: c.cast(outer(kind)))
    parquet.write_table(table, path)
    (read,) = open_histories(path, shop.manifest).read(0)
    assert read.lengths.tolist() == plain.lengths.tolist()
    for name, values in plain.values.items():
        np.testing.assert_array_equal(read.values[name], values)


@pytest.mark.parametrize("spoil", ["shorter and longer", "a null within"])
def test_vectors_that_are_none_are_refused(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator, spoil: str
):
    shop, path = shops("sim"), tmp_path / "h.parquet"
    write_parquet(path, shop, {"u": shop.user(3, rng)}, rows=1)
    vector = next(t for t in open_histories(path, shop.manifest).tensors if len(t.axes) > 1)

    def spoiled(column: object) -> object:
        ((first, second, third),) = column.to_pylist()
        if spoil == "a null within":
            first[0] = None
        else:
            second.append(first.pop())
        return pa.array([[first, second, third]], column.type)

    table = with_lists(parquet.read_table(path), vector.name, spoiled)
    parquet.write_table(table, path)
    with pytest.raises(EventsError, match=f"the vectors in {vector.name!r} differ in length or"):
        list(open_histories(path, shop.manifest).read(0))


@pytest.mark.parametrize("typed", [True, False])
def test_vectors_of_users_without_events(typed: bool, shops: Callable[[str], Shop], tmp_path: Path):
    """Nothing then tells how long a vector is, nor even that it is one."""
    shop, path = shops("sim"), tmp_path / "h.parquet"
    columns: dict[str, object] = {"user_id": ["a", "b"]}
    for tensor in shop.manifest.graph("prefill").inputs:
        if tensor.name != "event_mask":
            vector = pa.list_(pa.float32()) if len(tensor.axes) > 2 else pa.int32()
            columns[tensor.name] = pa.array([[], []], pa.list_(vector if typed else pa.null()))
    parquet.write_table(pa.table(columns), path)
    (piece,) = open_histories(path, shop.manifest).read(0)
    assert piece.lengths.tolist() == [0, 0]
    for tensor in shop.manifest.graph("prefill").inputs:
        if tensor.name != "event_mask":
            assert piece.values[tensor.name].shape == (0, *tensor.axes[2:])
            assert piece.values[tensor.name].dtype == tensor.dtype


def test_a_parquet_needs_pyarrow(
    shops: Callable[[str], Shop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match="pyarrow"):
        open_histories(tmp_path / "h.parquet", shops("sim").manifest)


def test_what_is_no_file_of_histories_is_refused(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator
):
    shop = shops("sim")
    junk = tmp_path / "junk.parquet"
    junk.write_bytes(b"PAR1 junk")
    for path, says in [
        (junk, "can't be read as a .parquet"),
        (tmp_path / "absent.parquet", "can't be read as .*: there is no such file"),
        (tmp_path / "absent.npz", "can't be read as .*: there is no such file"),
        (tmp_path / "events.csv", "must be an .npz or .parquet"),
    ]:
        with pytest.raises(EventsError, match=says):
            open_histories(path, shop.manifest)
    users = some_users(shop, 5, rng)
    write_npz(tmp_path / "h.npz", shop, users)
    arrays = dict(np.load(tmp_path / "h.npz"))
    for change, says in [
        ({"user_id": arrays["user_id"][:3]}, "must have the shape"),
        ({"user_id": arrays["user_id"][:, None]}, r"must have the shape \[users\]"),
        ({"event_item_id": arrays["event_item_id"] + 100}, "must lie in"),
        ({"user_id": np.array(["a", "b", "c", "d", "\ud800"])}, "must be text in UTF-8"),
    ]:
        np.savez(tmp_path / "bad.npz", **(arrays | change))
        with pytest.raises(EventsError, match=says):
            list(open_histories(tmp_path / "bad.npz", shop.manifest).read(0))

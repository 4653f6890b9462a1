"""The file of an item table, and the bytes of its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ckv_export.cache.item_table import FILE_NAME, load_item_table, row_bytes, save_item_table
from ckv_export.contract import (
    AttentionSpec,
    DnnSpec,
    FeatureSpec,
    ModelSpec,
    TensorSpec,
    item_table_tensors,
)
from ckv_export.errors import BundleError

ITEMS = 11


def make_spec(attention: AttentionSpec) -> ModelSpec:
    features = (FeatureSpec("item_id", "item", "categorical", 4, vocab_size=ITEMS),)
    return ModelSpec("sim", features, attention, DnnSpec((), (), False), 9, window=4)


def drawn_table(
    rng: np.random.Generator, key_width: int = 6, key_dtype: str = "bool"
) -> dict[str, np.ndarray]:
    """A table of numbers of the widths and types that real ones have."""
    spec = make_spec(AttentionSpec(8, 2, 2, 1, 10, 7))
    table = {}
    for tensor in item_table_tensors(spec, key_width, key_dtype):
        shape = tensor.shape({"I": ITEMS})
        drawn = rng.integers(0, 7, shape) if tensor.dtype == "int32" else rng.normal(size=shape)
        table[tensor.name] = (drawn > 0 if tensor.dtype == "bool" else drawn).astype(tensor.dtype)
    return table


# -- bytes of a row, added up by hand


@pytest.mark.parametrize(
    ("attention", "key", "bytes_of_a_row"),
    [
        # two row numbers, 2 and 1 user numbers, a key of 16 floats
        (AttentionSpec(16, 4, 2, 1, 10, 13), (16, "float32"), 4 + 4 + 8 + 4 + 64),
        # a hash code: a byte a bit
        (AttentionSpec(16, 4, 2, 1, 10, 13), (6, "bool"), 4 + 4 + 8 + 4 + 6),
        # no pool for K: all 16 of its numbers, no row number
        (AttentionSpec(16, 4, 16, 1, 0, 3), (16, "float32"), 64 + 4 + 4 + 64),
        # no pool for V
        (AttentionSpec(4, 1, 1, 4, 2, 0), (12, "bool"), 4 + 4 + 16 + 12),
        # nothing but pool rows
        (AttentionSpec(4, 1, 0, 0, 2, 2), (4, "float32"), 4 + 4 + 0 + 0 + 16),
    ],
)
def test_bytes_of_a_row(attention: AttentionSpec, key: tuple[int, str], bytes_of_a_row: int):
    layout = item_table_tensors(make_spec(attention), *key)
    assert row_bytes(layout) == bytes_of_a_row


def test_bytes_of_a_row_are_those_of_the_arrays(rng: np.random.Generator):
    table = drawn_table(rng)
    layout = [TensorSpec(n, a.dtype.name, ("I", *a.shape[1:])) for n, a in table.items()]
    assert row_bytes(layout) * ITEMS == sum(a.nbytes for a in table.values())


# -- the file


@pytest.mark.parametrize("key", [(6, "bool"), (8, "float32")])
def test_a_table_is_read_as_it_was_written(
    tmp_path: Path, key: tuple[int, str], rng: np.random.Generator
):
    table = drawn_table(rng, *key)
    save_item_table(tmp_path, table)
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]
    read = load_item_table(tmp_path)
    assert set(read) == set(table)
    for name, array in table.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_tensors_without_a_number_keep_their_shape(tmp_path: Path):
    table = {"item_k_user": np.zeros((ITEMS, 0), np.float32), "item_k_index": np.zeros(0, np.int32)}
    save_item_table(tmp_path, table)
    read = load_item_table(tmp_path)
    assert {n: (a.shape, a.dtype) for n, a in read.items()} == {
        n: (a.shape, a.dtype) for n, a in table.items()
    }


def test_a_column_of_a_wider_array_is_written_as_it_reads(tmp_path: Path, rng: np.random.Generator):
    wide = rng.standard_normal((ITEMS, 6)).astype(np.float32)
    save_item_table(tmp_path, {"item_k_user": wide[:, 1::2]})
    np.testing.assert_array_equal(load_item_table(tmp_path)["item_k_user"], wide[:, 1::2])


def test_writing_replaces_what_was_there(tmp_path: Path, rng: np.random.Generator):
    save_item_table(tmp_path, {"item_v_user": np.zeros((500, 3), np.float32)})
    table = drawn_table(rng)
    save_item_table(tmp_path, table)
    assert set(load_item_table(tmp_path)) == set(table)


def test_a_place_that_can_not_be_written_is_refused(tmp_path: Path, rng: np.random.Generator):
    with pytest.raises(BundleError, match="can't write the item table"):
        save_item_table(tmp_path / "nowhere", drawn_table(rng))


def refused(folder: Path) -> None:
    with pytest.raises(BundleError) as caught:
        load_item_table(folder)
    assert str(caught.value).startswith(f"{folder / FILE_NAME} is no item table: ")


def test_a_missing_file_is_refused(tmp_path: Path):
    refused(tmp_path)


def test_a_folder_of_that_name_is_refused(tmp_path: Path):
    (tmp_path / FILE_NAME).mkdir()
    refused(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_table_that_was_cut_off_is_refused(tmp_path: Path, kept: float, rng: np.random.Generator):
    save_item_table(tmp_path, drawn_table(rng))
    whole = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(whole[: int(len(whole) * kept)])
    refused(tmp_path)


@pytest.mark.parametrize("content", [b"junk", b"PK\x03\x04" + b"\0" * 99, b"\xff" * 200])
def test_another_file_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / FILE_NAME).write_bytes(content)
    refused(tmp_path)


def test_bytes_behind_the_table_are_refused(tmp_path: Path, rng: np.random.Generator):
    save_item_table(tmp_path, drawn_table(rng))
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b"more")
    refused(tmp_path)


def test_a_damaged_header_is_refused_or_read_as_other_names(
    tmp_path: Path, rng: np.random.Generator
):
    """Whatever bit of the header flips: an error of ours, or a table that isn't the same."""
    table = drawn_table(rng)
    save_item_table(tmp_path, table)
    whole = (tmp_path / FILE_NAME).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    refusals = 0
    for position in rng.integers(0, header, 60):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        (tmp_path / FILE_NAME).write_bytes(bytes(damaged))
        print(position)
        try:
            read = load_item_table(tmp_path)
        except BundleError:
            refusals += 1
            continue
        assert not all(n in read and read[n].tobytes() == a.tobytes() for n, a in table.items())
    assert refusals > 20

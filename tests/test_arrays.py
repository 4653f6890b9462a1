"""Arrays of users' files: what .npz and .parquet hold, and what is refused of either."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckv_export.arrays import read_arrays, take
from ckv_export.contract import FeatureSpec, TensorSpec
from ckv_export.errors import EventsError, MissingDependency

PATH = Path("file.npz")

Save = Callable[..., Path]


@pytest.fixture
def save_parquet(tmp_path: Path) -> Save:
    """Write columns given as lists or arrow arrays."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: no .parquet here")
    from pyarrow import parquet

    def save(**columns: Any) -> Path:
        parquet.write_table(pyarrow.table(columns), tmp_path / "file.parquet")
        return tmp_path / "file.parquet"

    return save


@pytest.fixture
def save_npz(tmp_path: Path) -> Save:
    def save(**arrays: Any) -> Path:
        np.savez(tmp_path / "file.npz", **arrays)
        return tmp_path / "file.npz"

    return save


def refusal(path: Path, arrays: dict[str, Any], tensor: TensorSpec, **sizes: int) -> str:
    with pytest.raises(EventsError) as caught:
        take(path, arrays, tensor, dict(sizes))
    assert str(path) in str(caught.value)
    return str(caught.value)


# -- what files hold


def test_npz_gives_its_arrays(save_npz: Save, rng: np.random.Generator):
    given = {"ids": rng.integers(0, 9, 5), "vector": rng.standard_normal((5, 3)), "empty": [[], []]}
    found = read_arrays(save_npz(**given))
    assert found.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.asarray(array).dtype


def test_parquet_gives_columns_and_lists_become_last_axes(save_parquet: Save):
    pyarrow = pytest.importorskip("pyarrow")
    found = read_arrays(
        save_parquet(
            ids=pyarrow.array([3, 1, 2], pyarrow.int32()),
            price=[0.5, 1.5, -2.0],
            tags=[[1, 2], [3, 0], [0, 0]],
            image=pyarrow.array(
                [[0.5] * 4, [1.0] * 4, [2.0] * 4], pyarrow.list_(pyarrow.float32())
            ),
            fixed=pyarrow.array([[1, 2, 3]] * 3, pyarrow.list_(pyarrow.int64(), 3)),
            of_events=[[[1, 2]] * 4, [[3, 0]] * 4, [[5, 6]] * 3 + [[7, 8]]],
            seen=[True, False, True],
        )
    )
    assert {n: (a.dtype.name, a.shape) for n, a in found.items()} == {
        "ids": ("int32", (3,)),
        "price": ("float64", (3,)),
        "tags": ("int64", (3, 2)),
        "image": ("float32", (3, 4)),
        "fixed": ("int64", (3, 3)),
        "of_events": ("int64", (3, 4, 2)),
        "seen": ("bool", (3,)),
    }
    assert found["tags"].tolist() == [[1, 2], [3, 0], [0, 0]]
    assert found["of_events"][:, 3].tolist() == [[1, 2], [3, 0], [7, 8]]
    assert found["image"][:, 3].tolist() == [0.5, 1.0, 2.0]


def test_parquet_columns_that_nobody_asks_for_may_be_anything(save_parquet: Save):
    path = save_parquet(
        ids=[1, 2, 3], title=["a", None, "c"], words=[[1], [], [2, 3]], gone=[None, [1], None]
    )
    assert take(path, read_arrays(path), TensorSpec("ids", "int32", ("n",)), {}).tolist() == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("columns", [{"tags": [[1, 2], [3]]}, {"tags": [[1, 2], None]}])
def test_ragged_lists_are_refused(save_parquet: Save, columns: dict[str, Any]):
    path = save_parquet(**columns)
    told = refusal(path, read_arrays(path), TensorSpec("tags", "int32", ("n", 2)))
    assert "'tags' must have the shape [n, 2], got [2] of lists that differ in length" in told


def test_columns_of_text_are_told_from_ragged_lists(save_parquet: Save):
    arrays = read_arrays(path := save_parquet(ids=[None, "1", "2"]))
    told = refusal(path, arrays, TensorSpec("ids", "int32", ("n",)))
    assert "'ids' must be convertible to int32, got str" in told
    told = refusal(path, arrays, TensorSpec("ids", "int32", ("n", 2)))
    assert told.endswith("'ids' must have the shape [n, 2], got [3]")


def test_a_missing_value_is_refused(save_parquet: Save):
    path = save_parquet(ids=[1, None, 3])
    told = refusal(path, read_arrays(path), TensorSpec("ids", "int32", ("n",)))
    assert "'ids' must be convertible to int32, got float64" in told


@pytest.mark.parametrize("name", ["file.csv", "file", "file.npz.gz", "file.NPZ"])
def test_other_suffixes_are_refused_unread(tmp_path: Path, name: str):
    with pytest.raises(EventsError, match=r"must be an \.npz or \.parquet, got .*file"):
        read_arrays(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 9, b"\x00" * 300])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: no .parquet here")
    path = tmp_path / "file.parquet"
    path.write_bytes(content)
    with pytest.raises(EventsError, match=r"file\.parquet can't be read as a \.parquet table: "):
        read_arrays(path)


@pytest.mark.parametrize("name", ["gone.parquet", "gone.npz"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed: no .parquet here")
    with pytest.raises(EventsError, match=f"{name} can't be read as .*: there is no such file"):
        read_arrays(tmp_path / name)


def test_without_pyarrow_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "file.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingDependency, match=r"'pyarrow'.*ckv-export\[parquet\]"):
        read_arrays(tmp_path / "file.parquet")


# -- what is taken of them


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("wanted", ["int32", "float32"])
def test_whole_numbers_of_any_width(kind: str, wanted: str, rng: np.random.Generator):
    given = rng.integers(0, 100, (4, 3)).astype(kind)
    taken = take(PATH, {"x": given}, TensorSpec("x", wanted, ("n", 3)), {})
    assert taken.dtype == np.dtype(wanted)
    np.testing.assert_array_equal(taken, given)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_whole_numbers_written_as_floats_are_no_ids(kind: str):
    told = refusal(PATH, {"x": np.ones(4, kind)}, TensorSpec("x", "int32", ("n",)))
    assert told == f"{PATH}: 'x' must be convertible to int32, got {kind}"


@pytest.mark.parametrize("kind", ["bool", "U3", "S3", "complex64", "datetime64[s]", "object"])
@pytest.mark.parametrize("wanted", ["int32", "float32"])
def test_other_types_are_not_guessed_at(kind: str, wanted: str):
    told = refusal(PATH, {"x": np.zeros(4, kind)}, TensorSpec("x", wanted, ("n",)))
    got = "int" if kind == "object" else np.dtype(kind)
    assert f"'x' must be convertible to {wanted}, got {got}" in told


@pytest.mark.parametrize("number", [2**31, 2**63 - 1, -(2**31) - 1, 2**32 + 1])
def test_numbers_beyond_int32(number: int):
    told = refusal(PATH, {"x": np.array([0, number])}, TensorSpec("x", "int32", ("n",)))
    assert told == f"{PATH}: 'x' must hold numbers that fit into int32"


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 3.5e38, -1e300])
def test_numbers_that_no_float32_is(number: float):
    told = refusal(PATH, {"x": np.array([0.0, number])}, TensorSpec("x", "float32", ("n",)))
    assert told == f"{PATH}: 'x' holds NaN or numbers too large for float32"


def test_the_ends_of_int32_fit():
    ends = np.array([-(2**31), 2**31 - 1])
    assert take(PATH, {"x": ends}, TensorSpec("x", "int32", ("n",)), {}).tolist() == ends.tolist()


def test_a_missing_array_names_the_nearest():
    spec = TensorSpec("category", "int32", ("n",))
    told = refusal(PATH, {"categroy": np.zeros(3), "price": np.zeros(3)}, spec)
    assert told == f"{PATH} lacks the array 'category'; did you mean 'categroy'?"
    assert refusal(PATH, {"x": np.zeros(3)}, spec) == f"{PATH} lacks the array 'category'"


@pytest.mark.parametrize("shape", [(), (4,), (4, 2), (4, 3, 1), (4, 0)])
def test_a_wrong_shape_says_both(shape: tuple[int, ...]):
    told = refusal(PATH, {"x": np.zeros(shape, int)}, TensorSpec("x", "int32", ("n", 3)), n=4)
    assert told == f"{PATH}: 'x' must have the shape [4, 3], got {list(shape)}"


def test_named_axes_agree_between_arrays():
    sizes: dict[str, int] = {}
    arrays = {"a": np.zeros((2, 5), int), "b": np.zeros((2, 5, 3)), "c": np.zeros((2, 4), int)}
    take(PATH, arrays, TensorSpec("a", "int32", ("B", "S")), sizes)
    take(PATH, arrays, TensorSpec("b", "float32", ("B", "S", 3)), sizes)
    assert sizes == {"B": 2, "S": 5}
    told = refusal(PATH, arrays, TensorSpec("c", "int32", ("B", "S")), **sizes)
    assert told == f"{PATH}: 'c' must have the shape [2, 5], got [2, 4]"


# -- ids


IDS = TensorSpec("x", "int32", ("n", 2))


@pytest.mark.parametrize("wrong", [-1, 9, 2**31, -(2**31) - 1, 2**32, 2**32 + 1, 2**63 - 1])
@pytest.mark.parametrize("kind", ["categorical", "sequence"])
def test_an_id_without_a_row_is_told_as_it_stands(wrong: int, kind: str):
    """Before it is converted: an id of more than 32 bits must not pass for another."""
    feature = FeatureSpec("item", "item", kind, 4, vocab_size=9, length=2)
    with pytest.raises(EventsError) as caught:
        take(PATH, {"x": np.array([[0, 8], [wrong, 3]])}, IDS, {}, feature)
    assert str(caught.value) == f"{PATH}: ids of feature 'item' must lie in [0, 9), got {wrong}"


def test_the_ends_of_a_table_are_ids():
    feature = FeatureSpec("item", "item", "categorical", 4, vocab_size=9)
    assert take(PATH, {"x": np.array([[0, 8]])}, IDS, {}, feature).tolist() == [[0, 8]]
    assert take(PATH, {"x": np.zeros((0, 2), int)}, IDS, {}, feature).shape == (0, 2)


@pytest.mark.parametrize(
    "feature",
    [
        FeatureSpec("price", "item", "numeric", 2),
        FeatureSpec("time", "item", "timestamp", 0),
        FeatureSpec("image", "item", "vector", 2, length=2),
    ],
)
def test_other_numbers_are_no_ids(feature: FeatureSpec):
    numbers = np.array([[-5, 2**31 - 1]])
    taken = take(PATH, {"x": numbers}, TensorSpec("x", feature.dtype, ("n", 2)), {}, feature)
    np.testing.assert_array_equal(taken, numbers.astype(feature.dtype))

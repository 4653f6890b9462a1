"""Files of events: what fits is taken as it is, everything else is named and refused."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ckv_testing.forms import BY_ID, EXTERNAL, HSTU, SIM

from ckv_export.contract import AttentionSpec, DnnSpec, FeatureSpec, ModelSpec
from ckv_export.errors import EventsError
from ckv_export.events import event_tensors, load_events

VOCAB, TAGS, LENGTH, WIDTH = 9, 5, 3, 4
SPEC = ModelSpec(
    kind="sim",
    features=(
        FeatureSpec("item_id", "item", "categorical", 4, vocab_size=VOCAB),
        FeatureSpec("tags", "item", "sequence", 4, vocab_size=TAGS, length=LENGTH),
        FeatureSpec("picture", "item", "vector", WIDTH, length=WIDTH),
        FeatureSpec("age", "user", "numeric", 2),
    ),
    attention=AttentionSpec(8, 2, 2, 2, 10, 10),
    dnn=DnnSpec((6,), ("relu",), True),
    max_len=20,
    window=5,
    options={"topk": 3},
)
USERS, EVENTS = 2, 6


def arrays() -> dict[str, Any]:
    """Events of two users as int64 and float64, which nobody has to know better."""
    rng = np.random.default_rng(0)
    shape = (USERS, EVENTS)
    return {
        "event_item_id": rng.integers(0, VOCAB, shape),
        "event_tags": rng.integers(0, TAGS, (*shape, LENGTH)),
        "event_picture": rng.standard_normal((*shape, WIDTH)),
        "event_mask": rng.random(shape) < 0.8,
    }


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Save the arrays with some changed; `...` leaves one out."""

    def write(**changed: Any) -> Path:
        kept = {n: a for n, a in (arrays() | changed).items() if a is not ...}
        np.savez(tmp_path / "events.npz", **kept)
        return tmp_path / "events.npz"

    return write


def refuse(path: Path, *says: str) -> None:
    with pytest.raises(EventsError) as caught:
        load_events(path, SPEC)
    message = str(caught.value)
    assert str(path) in message
    for part in says:
        assert part in message


def test_takes_what_fits(save):
    given, loaded = arrays(), load_events(save(), SPEC)
    assert list(loaded) == ["event_item_id", "event_tags", "event_picture", "event_mask"]
    assert [a.dtype.name for a in loaded.values()] == ["int32", "int32", "float32", "bool"]
    for name, array in loaded.items():
        np.testing.assert_array_equal(array, given[name].astype(array.dtype))


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint32", "int64", "uint64"])
def test_takes_whole_numbers_of_any_width(save, kind: str):
    ids = arrays()["event_item_id"]
    loaded = load_events(save(event_item_id=ids.astype(kind)), SPEC)
    assert loaded["event_item_id"].dtype == np.int32
    np.testing.assert_array_equal(loaded["event_item_id"], ids)


@pytest.mark.parametrize("kind", ["bool", "int64", "float32", "uint8"])
def test_takes_a_mask_of_0_and_1_in_any_type(save, kind: str):
    mask = arrays()["event_mask"]
    loaded = load_events(save(event_mask=mask.astype(kind)), SPEC)
    assert loaded["event_mask"].dtype == bool
    np.testing.assert_array_equal(loaded["event_mask"], mask)


def test_takes_whole_numbers_for_a_vector(save):
    picture = np.arange(USERS * EVENTS * WIDTH).reshape(USERS, EVENTS, WIDTH)
    loaded = load_events(save(event_picture=picture), SPEC)["event_picture"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, picture)


def test_other_arrays_are_ignored(save):
    assert set(load_events(save(label=np.ones(2), event_shop=np.ones(5)), SPEC)) == set(arrays())


def test_the_edges_of_a_table_are_ids(save):
    ids = np.full((USERS, EVENTS), VOCAB - 1)
    ids[:, 0] = 0
    np.testing.assert_array_equal(load_events(save(event_item_id=ids), SPEC)["event_item_id"], ids)


@pytest.mark.parametrize(("users", "events"), [(0, 5), (3, 0), (0, 0)])
def test_no_users_or_no_events(save, users: int, events: int):
    shape = (users, events)
    path = save(
        event_item_id=np.zeros(shape, int),
        event_tags=np.zeros((*shape, LENGTH), int),
        event_picture=np.zeros((*shape, WIDTH)),
        event_mask=np.zeros(shape, bool),
    )
    assert load_events(path, SPEC)["event_tags"].shape == (*shape, LENGTH)


@pytest.mark.parametrize("name", list(arrays()))
def test_a_missing_array_is_named(save, name: str):
    refuse(save(**{name: ...}), "lacks", repr(name))


def test_a_misspelt_array_names_the_nearest(save):
    refuse(
        save(event_item_id=..., event_itemid=arrays()["event_item_id"]),
        "'event_item_id'",
        "did you mean 'event_itemid'?",
    )


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("event_item_id", (USERS,), "[B, S]"),
        ("event_item_id", (USERS, EVENTS, 1), "[B, S]"),
        ("event_tags", (USERS, EVENTS), f"[{USERS}, {EVENTS}, {LENGTH}]"),
        ("event_tags", (USERS, EVENTS, LENGTH + 1), f"[{USERS}, {EVENTS}, {LENGTH}]"),
        ("event_tags", (USERS, EVENTS + 1, LENGTH), f"[{USERS}, {EVENTS}, {LENGTH}]"),
        ("event_picture", (USERS, EVENTS, WIDTH - 1), f"[{USERS}, {EVENTS}, {WIDTH}]"),
        ("event_picture", (USERS + 1, EVENTS, WIDTH), f"[{USERS}, {EVENTS}, {WIDTH}]"),
        ("event_mask", (EVENTS, USERS), f"[{USERS}, {EVENTS}]"),
        ("event_mask", (), f"[{USERS}, {EVENTS}]"),
    ],
)
def test_a_wrong_shape_says_both(save, name: str, shape: tuple[int, ...], wanted: str):
    path = save(**{name: np.zeros(shape, arrays()[name].dtype)})
    refuse(path, repr(name), f"shape {wanted}", f"got {list(shape)}")


@pytest.mark.parametrize(
    "wrong", [VOCAB, -1, 2**31, 2**32, 2**32 + 1, -(2**32) + 1, 2**63 - 1, -(2**63)]
)
def test_an_id_outside_the_table(save, wrong: int):
    """Also one that an int32 would wrap into the table."""
    ids = arrays()["event_item_id"]
    ids[1, 2] = wrong
    refuse(save(event_item_id=ids), "'item_id'", f"[0, {VOCAB})", f"got {wrong}")


def test_an_unsigned_id_outside_the_table(save):
    ids = arrays()["event_item_id"].astype(np.uint64)
    ids[0, 0] = 2**64 - 1
    refuse(save(event_item_id=ids), "'item_id'", f"got {2**64 - 1}")


def test_an_id_of_a_sequence_outside_its_table(save):
    tags = arrays()["event_tags"]
    tags[-1, -1, -1] = TAGS
    refuse(save(event_tags=tags), "'tags'", f"[0, {TAGS})", f"got {TAGS}")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("event_item_id", "float64"),
        ("event_item_id", "bool"),
        ("event_item_id", "U3"),
        ("event_tags", "complex128"),
        ("event_picture", "complex64"),
        ("event_picture", "S4"),
        ("event_mask", "U1"),
    ],
)
def test_another_type_is_not_guessed_at(save, name: str, kind: str):
    refuse(save(**{name: arrays()[name].astype(kind)}), repr(name), str(np.dtype(kind)))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_numbers_that_no_embedding_survives(save, wrong: float):
    picture = arrays()["event_picture"]
    picture[1, 2, 3] = wrong
    refuse(save(event_picture=picture), "'event_picture'", "NaN")


@pytest.mark.parametrize("wrong", [2, -1, 0.5, float("nan")])
def test_a_mask_of_other_numbers(save, wrong: float):
    mask = arrays()["event_mask"].astype(np.float64)
    mask[0, 0] = wrong
    refuse(save(event_mask=mask), "'event_mask'", "0 and 1")


class Runs:
    """An object whose unpickling makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_pickled_array_is_refused_and_not_executed(save, tmp_path: Path):
    marker = tmp_path / "executed"
    objects = np.empty((USERS, EVENTS), object)
    objects[0, 0] = Runs(marker)
    path = save(event_item_id=objects)
    refuse(path, "plain arrays")
    assert not marker.exists()
    with np.load(path, allow_pickle=True) as file:
        file["event_item_id"]
    assert marker.exists(), "this file does run code where it is trusted"


def test_a_bare_pickle_is_refused_and_not_executed(tmp_path: Path):
    marker, path = tmp_path / "executed", tmp_path / "events.npz"
    path.write_bytes(pickle.dumps(Runs(marker)))
    refuse(path, "plain arrays")
    assert not marker.exists()


def test_what_is_no_archive(tmp_path: Path):
    refuse(
        tmp_path / "nothing.npz", "nothing.npz can't be read as an .npz of plain arrays: there is"
    )
    refuse(tmp_path, ".npz")
    for name in ("events.csv", "events.npy", "events"):
        (tmp_path / name).write_bytes(b"")
        refuse(tmp_path / name, ".npz")
    folder = tmp_path / "folder.npz"
    folder.mkdir()
    refuse(folder, "can't be read")


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    """A member of an archive, written by hand."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize(
    "member",
    [
        b"no array",
        b"",
        npy("'<i8'", "(2, 6)", bytes(8)),
        npy("'<i8'", "(100000000, 100000000)"),
        npy("'<i8'", "(-2, -6)"),
        npy("'?!'", "(2, 6)"),
        npy("[('a', '<i8')]", "(2, 6)", bytes(96)),
        npy("__import__('os')", "(2, 6)"),
    ],
)
def test_junk_in_the_archive(save, member: bytes):
    path = save()
    with zipfile.ZipFile(path) as old:
        members = {n: old.read(n) for n in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in (members | {"event_item_id.npy": member}).items():
            new.writestr(name, data)
    refuse(path)


def test_a_single_array_under_that_name(tmp_path: Path):
    path = tmp_path / "events.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    refuse(path, "single array")


def test_damage_anywhere_is_refused(tmp_path: Path):
    """Cut off at every tenth, and every third byte turned of a compressed archive."""
    path = tmp_path / "events.npz"
    np.savez_compressed(path, **arrays())
    whole, refused = path.read_bytes(), 0
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        refuse(path)
    for place in range(0, len(whole), 3):
        data = bytearray(whole)
        data[place] ^= 0xFF
        path.write_bytes(data)
        try:
            load_events(path, SPEC)
        except EventsError:
            refused += 1
    assert refused > len(whole) // 6


def test_event_files_are_of_the_form_too():
    assert [t.name for t in event_tensors(HSTU, EXTERNAL)] == [
        "event_embedding",
        "event_time",
        "event_mask",
    ]
    assert [t.name for t in event_tensors(SIM, BY_ID)] == ["event_item_id", "event_mask"]


# -- histories as bulk prefill takes them


@pytest.fixture
def save_histories(tmp_path: Path) -> Callable[..., Path]:
    """Lists as long as each user's history; some changed, `...` leaves one out."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: no .parquet here")
    from pyarrow import parquet

    def write(**changed: Any) -> Path:
        kept = {n: a for n, a in (histories() | changed).items() if a is not ...}
        parquet.write_table(pyarrow.table(kept), tmp_path / "histories.parquet")
        return tmp_path / "histories.parquet"

    return write


def histories() -> dict[str, Any]:
    return {
        "user_id": ["ann", "bob", "cy"],
        "event_item_id": [[1, 2, 3], [], [4]],
        "event_tags": [[[1, 1, 0], [2, 0, 0], [3, 4, 1]], [], [[4, 0, 0]]],
        "event_picture": [[[0.5] * 4, [1.0] * 4, [1.5] * 4], [], [[2.0] * 4]],
    }


def test_histories_are_padded_on_the_left(save_histories):
    loaded = load_events(save_histories(), SPEC)
    assert list(loaded) == ["event_item_id", "event_tags", "event_picture", "event_mask"]
    assert [a.dtype.name for a in loaded.values()] == ["int32", "int32", "float32", "bool"]
    assert loaded["event_item_id"].tolist() == [[1, 2, 3], [0, 0, 0], [0, 0, 4]]
    assert loaded["event_mask"].tolist() == [[True] * 3, [False] * 3, [False, False, True]]
    assert loaded["event_tags"][:, -1].tolist() == [[3, 4, 1], [0, 0, 0], [4, 0, 0]]
    assert loaded["event_picture"][:, 1:, 0].tolist() == [[1.0, 1.5], [0.0, 0.0], [0.0, 2.0]]


@pytest.mark.parametrize("length", [1, 2])
def test_histories_of_one_length(save_histories, length: int):
    ids, tags, pictures = [1] * length, [[1, 0, 0]] * length, [[1.0] * 4] * length
    path = save_histories(
        event_item_id=[ids] * 3, event_tags=[tags] * 3, event_picture=[pictures] * 3
    )
    loaded = load_events(path, SPEC)
    assert loaded["event_mask"].tolist() == [[True] * length] * 3
    assert loaded["event_item_id"].tolist() == [ids] * 3


def test_a_mask_of_histories_leaves_out_what_it_says(save_histories):
    loaded = load_events(save_histories(event_mask=[[True, False, True], [], [False]]), SPEC)
    assert loaded["event_mask"].tolist() == [[True, False, True], [False] * 3, [False] * 3]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"event_tags": [[[1, 1, 0]], [], [[4, 0, 0]]]},
         "in row 0, 'event_tags' has 1 events and 'event_item_id' 3"),
        ({"event_tags": [[[1, 1], [2, 0, 0], [3, 4, 1]], [], [[4, 0, 0]]]},
         "the lists in 'event_tags' must be of numbers, or of vectors that are equally long"),
        ({"event_item_id": [[1, None, 3], [], [4]]}, "convertible to int32, got float64"),
        ({"event_item_id": [[1, 2, 3], [], [None]]}, "convertible to int32, got float64"),
        ({"event_item_id": [[1, 2, 3], None, [4]]}, "'event_item_id' must have the shape"),
        ({"event_item_id": [1, 2, 3]}, "'event_item_id' must have the shape"),
        ({"event_item_id": [["1", "2", "3"], [], ["4"]]}, "'event_item_id'"),
        ({"event_item_id": [[1, 2, VOCAB], [], [4]]}, f"{VOCAB}"),
        ({"event_picture": ...}, "lacks the array 'event_picture'"),
        # Not even how wide a vector is stands there.
        ({n: [[]] * 3 for n in ("event_item_id", "event_tags", "event_picture")}, "'event_"),
    ],
)  # fmt: skip
def test_histories_that_do_not_fit(save_histories, changed: dict[str, Any], says: str):
    refuse(save_histories(**changed), says)

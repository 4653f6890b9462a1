"""Files of item features: what a catalogue makes of them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ckv_testing.draw import PLAIN, RICH, draw_state, make_spec

from ckv_export.catalogue import bare_catalogue, has_item_key, item_key, load_catalogue, notes_on
from ckv_export.contract import AttentionSpec, DnnSpec, EventForm, FeatureSpec, ModelSpec
from ckv_export.errors import EventsError, SpecError
from ckv_export.model.events import EventEmbedding, all_item_embeddings

VOCAB, CATEGORIES, TAGS = 23, 5, 9
SPEC = make_spec(
    "sim",
    features=(
        FeatureSpec("user_id", "user", "categorical", 4, vocab_size=7),
        FeatureSpec("item_id", "item", "categorical", 4, vocab_size=VOCAB),
        FeatureSpec("category", "item", "categorical", 4, vocab_size=CATEGORIES),
        FeatureSpec("tags", "item", "sequence", 4, vocab_size=TAGS, length=3),
        FeatureSpec("price", "item", "numeric", 2),
        FeatureSpec("image", "item", "vector", 3, length=6, projected=True),
    ),
)
KNOWN = 15
FORMATS = ("npz", "parquet")

Save = Callable[..., Path]


def arrays(rng: np.random.Generator) -> dict[str, Any]:
    """`KNOWN` items in no order, in the types that such files have."""
    return {
        "item_id": rng.permutation(VOCAB)[:KNOWN],
        "category": rng.integers(1, CATEGORIES, KNOWN).astype(np.int16),
        "tags": rng.integers(0, TAGS, (KNOWN, 3)),
        "price": rng.standard_normal(KNOWN),
        "image": rng.standard_normal((KNOWN, 6)).astype(np.float32) + 3,
        "title": np.array([f"item {i}" for i in range(KNOWN)]),
    }


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(given: dict[str, Any], suffix: str = "npz", **changed: Any) -> Path:
        """Save the arrays with some changed; `...` leaves one out."""
        kept = {n: np.asarray(a) for n, a in (given | changed).items() if a is not ...}
        path = tmp_path / f"items.{suffix}"
        if suffix == "npz":
            np.savez(path, **kept)
            return path
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: no .parquet")
        from pyarrow import parquet

        columns = {n: list(a) if a.ndim > 1 else a for n, a in kept.items()}
        parquet.write_table(pyarrow.table(columns), path)
        return path

    return write


def refused(path: Path, spec: ModelSpec = SPEC) -> str:
    with pytest.raises(EventsError) as caught:
        load_catalogue(path, spec, "item_id")
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_item_has_its_features_and_the_others_zeros(
    save: Save, suffix: str, rng: np.random.Generator
):
    given = arrays(rng)
    catalogue = load_catalogue(save(given, suffix), SPEC, "item_id")
    assert (catalogue.key, catalogue.known) == ("item_id", KNOWN)
    assert list(catalogue.features) == ["category", "tags", "price", "image"]
    unknown = np.setdiff1d(np.arange(VOCAB), given["item_id"])
    dtypes = {"category": "int32", "tags": "int32", "price": "float32", "image": "float32"}
    for name, table in catalogue.features.items():
        assert table.dtype == np.dtype(dtypes[name])
        assert table.shape == (VOCAB, *given[name].shape[1:])
        np.testing.assert_array_equal(table[given["item_id"]], given[name].astype(table.dtype))
        assert not table[unknown].any()


def test_unknown_items_embed_as_padding_with_their_own_id(save: Save, rng: np.random.Generator):
    state = draw_state(SPEC, rng)
    given = arrays(rng)
    catalogue = load_catalogue(save(given), SPEC, "item_id")
    looked_up = {n: torch.from_numpy(a) for n, a in catalogue.features.items()}
    events = EventEmbedding(SPEC, state, EventForm(item_key="item_id"), looked_up)
    embedded = all_item_embeddings(events, torch.arange(VOCAB, dtype=torch.int32))
    own = state["embedding.item_id.table"]
    assert torch.equal(embedded[:, :4], own)
    unknown = np.setdiff1d(np.arange(VOCAB), given["item_id"])
    assert not embedded[unknown, 4:].any()
    assert embedded[given["item_id"], 4:].abs().sum(1).min() > 0


def test_items_may_go_by_another_id_and_the_key_by_another_name(
    save: Save, rng: np.random.Generator
):
    given = arrays(rng)
    given["category"] = rng.permutation(CATEGORIES)
    few = {n: a[:CATEGORIES] for n, a in given.items()}
    catalogue = load_catalogue(save(few), SPEC, "category")
    assert list(catalogue.features) == ["item_id", "tags", "price", "image"]
    table = catalogue.features["item_id"]
    assert table.shape == (CATEGORIES,)
    np.testing.assert_array_equal(table[few["category"]], few["item_id"])


@pytest.mark.parametrize(
    "named", [range(1, VOCAB), range(VOCAB), range(VOCAB - 1), range(2, VOCAB)]
)
def test_items_that_a_file_lacks_are_told(save: Save, rng: np.random.Generator, named: range):
    """Padding, 0, need not be in it."""
    shapes = {name: array.shape[1:] for name, array in arrays(rng).items()}
    given = {name: np.zeros((len(named), *shape), np.int32) for name, shape in shapes.items()}
    catalogue = load_catalogue(save(given, item_id=np.array(named)), SPEC, "item_id")
    lacking = len(set(range(1, VOCAB)) - set(named))
    says = f"of {len(named)} ids of 'item_id' and not of 1 others"
    assert [says in note for note in notes_on(catalogue, SPEC)] == [True] * lacking


def test_a_time_is_no_part_of_a_catalogue(save: Save, rng: np.random.Generator):
    time = FeatureSpec("time", "item", "timestamp", 0)
    spec = ModelSpec(
        "hstu", (time, *SPEC.features), AttentionSpec(8, 2, 2, 2, 4, 4), DnnSpec((), (), False), 9
    )
    catalogue = load_catalogue(save(arrays(rng)), spec, "item_id")
    assert list(catalogue.features) == ["category", "tags", "price", "image"]


def test_an_empty_file_knows_nothing(save: Save, rng: np.random.Generator):
    none = {n: a[:0] for n, a in arrays(rng).items()}
    catalogue = load_catalogue(save(none), SPEC, "item_id")
    assert catalogue.known == 0
    assert {n: a.shape for n, a in catalogue.features.items()} == {
        "category": (VOCAB,),
        "tags": (VOCAB, 3),
        "price": (VOCAB,),
        "image": (VOCAB, 6),
    }


# -- refusals


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["item_id", "category", "tags", "price", "image"])
def test_a_missing_column_is_named(save: Save, suffix: str, name: str, rng: np.random.Generator):
    given = arrays(rng)
    told = refused(save(given, suffix, **{name: ..., f"{name}s": given[name]}))
    assert f"lacks the array {name!r}; did you mean '{name}s'?" in told


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("category", (KNOWN, 2), "[15]"),
        ("tags", (KNOWN, 2), "[15, 3]"),
        ("tags", (KNOWN,), "[15, 3]"),
        ("image", (KNOWN, 7), "[15, 6]"),
    ],
)
def test_a_wrong_shape(
    save: Save,
    suffix: str,
    name: str,
    shape: tuple[int, ...],
    wanted: str,
    rng: np.random.Generator,
):
    told = refused(save(arrays(rng), suffix, **{name: np.ones(shape, np.int64)}))
    assert f"{name!r} must have the shape {wanted}, got {list(shape)}" in told


def test_a_row_too_many(save: Save, rng: np.random.Generator):
    told = refused(save(arrays(rng), price=np.ones(KNOWN + 1)))
    assert "'price' must have the shape [15], got [16]" in told


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_item_named_twice(save: Save, suffix: str, rng: np.random.Generator):
    given = arrays(rng)
    ids = given["item_id"].copy()
    ids[KNOWN - 1] = ids[2]
    told = refused(save(given, suffix, item_id=ids))
    assert f"names the item_id {ids[2]} more than once" in told


@pytest.mark.parametrize(
    ("name", "wrong", "size"),
    [
        ("item_id", -1, VOCAB),
        ("item_id", VOCAB, VOCAB),
        ("category", CATEGORIES, CATEGORIES),
        ("tags", TAGS, TAGS),
        ("tags", -3, TAGS),
    ],
)
def test_an_id_without_a_row(
    save: Save, name: str, wrong: int, size: int, rng: np.random.Generator
):
    given = arrays(rng)
    changed = given[name].copy()
    changed.flat[rng.integers(changed.size)] = wrong
    told = refused(save(given, **{name: changed}))
    assert f"ids of feature {name!r} must lie in [0, {size}), got {wrong}" in told


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["item_id", "category", "tags"])
def test_ids_written_as_floats(save: Save, suffix: str, name: str, rng: np.random.Generator):
    given = arrays(rng)
    told = refused(save(given, suffix, **{name: given[name].astype(np.float64)}))
    assert f"{name!r} must be convertible to int32, got float64" in told


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["price", "image"])
def test_nan(save: Save, suffix: str, name: str, rng: np.random.Generator):
    given = arrays(rng)
    given[name].flat[rng.integers(given[name].size)] = np.nan
    assert f"{name!r} holds NaN" in refused(save(given, suffix))


def test_ragged_lists(save: Save, tmp_path: Path, rng: np.random.Generator):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: no .parquet here")
    from pyarrow import parquet

    given = arrays(rng)
    tags = [list(row) for row in given["tags"]]
    tags[4] = tags[4][:2]
    path = tmp_path / "items.parquet"
    columns = {n: list(a) if a.ndim > 1 else a for n, a in given.items()} | {"tags": tags}
    parquet.write_table(pyarrow.table(columns), path)
    told = refused(path)
    assert "'tags' must have the shape [15, 3], got [15] of lists that differ in length" in told


# -- the key


def test_the_key_is_the_first_categorical_item_feature_unless_told():
    assert item_key(SPEC) == "item_id"
    assert item_key(SPEC, "category") == "category"
    behind = make_spec("sim", features=(RICH[0], RICH[2], *PLAIN[::-1]))
    assert [f.name for f in behind.item_features] == ["cate_id", "item_id"]
    assert item_key(behind) == "cate_id"
    assert item_key(behind, "item_id") == "item_id"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("item_ids", "; did you mean 'item_id'?"),
        ("categories", "; did you mean 'category'?"),
        ("tags", ""),
        ("user", ""),
        ("price", ""),
        ("", ""),
    ],
)
def test_another_key_is_refused_naming_those_there_are(name: str, hint: str):
    with pytest.raises(SpecError) as caught:
        item_key(SPEC, name)
    wanted = f"the item key must be one of item_id, category, got {name!r}{hint}"
    assert str(caught.value) == wanted


def test_a_model_whose_items_have_no_id():
    spec = make_spec("sim", features=(FeatureSpec("price", "item", "numeric", 2), RICH[0]))
    assert not has_item_key(spec)
    assert has_item_key(SPEC)
    with pytest.raises(SpecError, match="no categorical item feature to know items by"):
        item_key(spec)


# -- items that are nothing but their id


def test_a_bare_catalogue_knows_every_id():
    spec = make_spec("sim", features=(RICH[0], PLAIN[0]))
    catalogue = bare_catalogue(spec, "item_id")
    assert (catalogue.key, catalogue.features, catalogue.known) == ("item_id", {}, 30)


def test_items_with_more_than_an_id_need_a_file():
    with pytest.raises(SpecError) as caught:
        bare_catalogue(SPEC, "item_id")
    assert str(caught.value) == (
        "items have more features than 'item_id' (category, tags, price, image): "
        "give --item-features"
    )

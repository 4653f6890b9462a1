from __future__ import annotations

import json

import pytest

from ckv_export.cache import cache_sizes
from ckv_export.cache.sizes import users_per_gb
from ckv_export.contract import AttentionSpec, DnnSpec, EventForm, FeatureSpec, ModelSpec
from ckv_export.errors import InputError

ITEM = FeatureSpec("item_id", "item", "categorical", 64, vocab_size=24323)
TAGS = FeatureSpec("tags", "item", "sequence", 64, vocab_size=91, length=5)
IMAGE = FeatureSpec("image", "item", "vector", 64, length=64)
PRICE = FeatureSpec("price", "item", "numeric", 64)
AGE = FeatureSpec("age", "user", "categorical", 64, vocab_size=9)


def model(
    *features: FeatureSpec, window: int | None = 50, layers: int = 1, **attention: int
) -> ModelSpec:
    settings = {"d": 256, "num_heads": 8, "user_k": 2, "user_v": 2}
    pools = {"pool_rows_k": 10000, "pool_rows_v": 10000}
    return ModelSpec(
        kind="sim",
        features=features or (ITEM,),
        attention=AttentionSpec(**{**settings, **pools, **attention}),
        dnn=DnnSpec((), (), True),
        max_len=1000,
        window=window,
        num_layers=layers,
    )


def rows(sizes) -> dict[str, tuple[str, int]]:
    return {row.what: (row.dtype, row.bytes_per_event) for row in sizes.compact}


def test_published_setting_costs_12_bytes_an_event_and_0_59_percent():
    sizes = cache_sizes(model())
    assert rows(sizes) == {
        "K index": ("uint16", 2),
        "V index": ("uint16", 2),
        "K user part": ("fp16", 4),
        "V user part": ("fp16", 4),
    }
    assert sizes.cached_events == 49
    assert sizes.compact_bytes == 12 * 49 == 588
    assert [row.bytes_per_event for row in sizes.full] == [1024, 2048]
    alone = sizes.comparisons[0]
    assert alone.full_fp32 == 2048 * 49
    assert alone.ratio_fp32 == pytest.approx(12 / 2048)
    assert alone.ratio_fp16 == pytest.approx(12 / 1024)
    assert sizes.paper_ratio_k == sizes.paper_ratio_v == 2 / 256
    assert sizes.pool_bytes == 2 * 10000 * 254 * 4


def test_history_of_the_long_branch_counts_on_both_sides():
    sizes = cache_sizes(model(ITEM, TAGS, IMAGE, PRICE, AGE))
    per_event = {row.what: row.bytes_per_event for row in sizes.item_features}
    assert per_event == {
        "history item_id": 4,
        "history tags": 20,
        "history image": 256,
        "history price": 4,
    }
    assert {row.events for row in sizes.item_features} == {1000}
    none, ids, features = sizes.comparisons
    assert (none.extras, ids.extras, features.extras) == ("none", "item_id", "item_features")
    assert (ids.compact, ids.full_fp32) == (588 + 4000, 100352 + 4000)
    assert (features.compact, features.full_fp16) == (588 + 284000, 50176 + 284000)
    assert ids.ratio_fp32 == pytest.approx(4588 / 104352)


def test_first_categorical_item_feature_is_the_id():
    sizes = cache_sizes(model(TAGS, IMAGE, PRICE, ITEM))
    assert sizes.item_id is not None
    assert sizes.item_id.what == "or item_id alone"
    assert any("'item_id'" in note for note in sizes.notes)


def test_an_id_that_decode_takes_is_the_whole_history():
    sizes = cache_sizes(model(IMAGE, PRICE, ITEM), form=EventForm(item_key="item_id"))
    assert sizes.item_id is None
    assert [row.what for row in sizes.item_features] == ["history item_id"]
    assert not any("look the others up" in note for note in sizes.notes)


def test_without_a_categorical_item_feature_there_is_no_smaller_history():
    sizes = cache_sizes(model(IMAGE))
    assert sizes.item_id is None
    assert [c.extras for c in sizes.comparisons] == ["none", "item_features"]
    assert sizes.to_dict()["item_id"] is None


def test_a_side_without_a_pool_is_stored_whole():
    sizes = cache_sizes(model(user_k=256, pool_rows_k=0))
    assert rows(sizes) == {
        "V index": ("uint16", 2),
        "K whole (no pool)": ("fp16", 512),
        "V user part": ("fp16", 4),
    }
    assert sizes.compact_bytes == 518 * 49
    assert (sizes.paper_ratio_k, sizes.paper_ratio_v) == (1.0, 2 / 256)
    assert "K has no pool: all 256 numbers are stored for every event." in sizes.notes


@pytest.mark.parametrize(("pool", "index"), [(65536, ("uint16", 2)), (65537, ("int32", 4))])
def test_index_width_follows_the_pool(pool: int, index: tuple[str, int]):
    sizes = cache_sizes(model(pool_rows_v=pool))
    assert rows(sizes)["V index"] == index
    assert rows(sizes)["K index"] == ("uint16", 2)
    assert sizes.compact_bytes == (10 + index[1]) * 49


def test_layers_multiply_and_a_whole_history_model_needs_no_ids():
    sizes = cache_sizes(model(ITEM, IMAGE, window=None, layers=3))
    assert sizes.cached_events == 1000
    assert sizes.compact_bytes == 12 * 1000 * 3
    (alone,) = sizes.comparisons
    assert (alone.full_fp16, alone.full_fp32) == (1024 * 1000 * 3, 2048 * 1000 * 3)
    assert not any("long branch" in note for note in sizes.notes)
    assert sizes.item_features == ()
    assert sizes.pool_bytes == 3 * 2 * 10000 * 254 * 4


@pytest.mark.parametrize(
    ("dtype", "per_event"), [("fp32", 4 + 2 * 16), ("fp16", 4 + 2 * 8), ("int8", 4 + 2 * (4 + 2))]
)
def test_user_dtypes(dtype: str, per_event: int):
    sizes = cache_sizes(model(user_k=4, user_v=4), dtype)
    assert sizes.compact_bytes == per_event * 49
    assert rows(sizes).get("K scale") == (("fp16", 2) if dtype == "int8" else None)


def test_int8_of_narrow_user_parts_says_that_it_saves_nothing():
    notes = cache_sizes(model(user_v=1), "int8").notes
    assert "int8 saves nothing on K: 2 + 2 bytes with the scale, 4 as fp16." in notes
    assert "int8 saves nothing on V: 1 + 2 bytes with the scale, 2 as fp16." in notes
    wide = cache_sizes(model(user_k=3, user_v=3), "int8")
    assert not any("saves nothing" in n for n in wide.notes)


def test_no_user_part_stores_no_scale():
    sizes = cache_sizes(model(user_k=0, user_v=0), "int8")
    assert sizes.compact_bytes == 4 * 49
    assert not any("saves nothing" in note for note in sizes.notes)


@pytest.mark.parametrize(("history", "cached"), [(0, 0), (1, 1), (49, 49), (50, 49), (1000, 49)])
def test_history_lengths(history: int, cached: int):
    sizes = cache_sizes(model(), history=history)
    assert sizes.cached_events == cached
    assert sizes.compact_bytes == 12 * cached


def test_an_empty_history_has_no_ratio():
    alone = cache_sizes(model(), history=0).comparisons[0]
    assert alone.ratio_fp16 is None
    assert alone.ratio_fp32 is None
    assert alone.to_dict()["users_per_gb"]["compact"] is None


def test_users_per_gb_and_totals():
    data = cache_sizes(model(), users=1_000_000).to_dict()["comparisons"][0]
    assert data["users_per_gb"]["compact"] == 10**9 // 588 == users_per_gb(588)
    assert data["total_bytes"]["compact"] == 588_000_000
    assert users_per_gb(600) == 1_666_666  # and two thirds of one
    assert cache_sizes(model(), users=0).to_dict()["comparisons"][0]["total_bytes"]["compact"] == 0
    assert "total_bytes" not in cache_sizes(model()).to_dict()["comparisons"][0]


def test_to_dict_is_json():
    json.dumps(cache_sizes(model(ITEM, IMAGE), users=3).to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"user_dtype": "fp8"}, "user_dtype must be one of fp32, fp16, int8, got 'fp8'"),
        ({"history": -1}, "history must be at least 0, got -1"),
        ({"users": -5}, "users must be at least 0, got -5"),
    ],
)
def test_bad_options(arguments: dict[str, object], words: str):
    with pytest.raises(InputError, match=words):
        cache_sizes(model(), **arguments)  # type: ignore[arg-type]

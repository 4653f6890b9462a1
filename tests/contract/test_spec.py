"""A configuration as data and back, and what it is refused for."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from ckv_testing.draw import KINDS, RICH, VARIANTS, drawn_spec, make_spec
from hypothesis import given
from hypothesis import strategies as st

from ckv_export.contract import AttentionSpec, DnnSpec, FeatureSpec, ModelSpec
from ckv_export.errors import SpecError, nearest


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_specification_survives_json(kind: str, variant: str):
    spec = make_spec(kind, variant)
    data = json.loads(json.dumps(spec.to_dict()))
    assert ModelSpec.from_dict(data) == spec
    assert ModelSpec.from_dict(data).to_dict() == spec.to_dict()


def test_drawn_specifications_survive_json(rng: np.random.Generator):
    for kind in KINDS * 5:
        spec = drawn_spec(kind, rng)
        assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_to_dict_gives_data_of_its_own():
    spec = make_spec("sim")
    spec.to_dict()["options"]["topk"] = 99
    spec.to_dict()["features"][0]["name"] = "other"
    assert spec == make_spec("sim")


def test_fields_with_defaults_may_be_left_out():
    spec = make_spec("sim")
    data = spec.to_dict()
    del data["mask_alignment"], data["num_layers"]
    del data["attention"]["use_silu"], data["features"][0]["shares"], data["dnn"]["sigmoid"]
    assert ModelSpec.from_dict(data) == spec


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `data` with the field at "a.b.0.c" set, or removed where `value` is None."""
    data = json.loads(json.dumps(data))
    *where, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    inner: Any = data
    for part in where:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return data


REFUSED = {
    # a field that is unknown, missing, or no mapping at all
    "widnow": (7, "model configuration: unknown field 'widnow'; did you mean 'window'?"),
    "kind": (None, "model configuration: the field 'kind' is missing"),
    "features.0.vocabsize": (3, "feature: unknown field 'vocabsize'; did you mean 'vocab_size'?"),
    "features.1.width": (None, "feature: the field 'width' is missing"),
    "features.1": ("cate_id", "feature must be a mapping, got str"),
    "attention.heads": (3, "attention: unknown field 'heads'; did you mean 'num_heads'?"),
    "attention.d": (None, "attention: the field 'd' is missing"),
    "attention": ([1], "attention must be a mapping, got list"),
    "dnn.zzz": (3, "dnn: unknown field 'zzz'"),
    "dnn.hidden": (None, "dnn: the field 'hidden' is missing"),
    "dnn": (7, "dnn must be a mapping, got int"),
    # features
    "features.0.name": ("", "a feature has an empty name"),
    "features.00.name": (7, "a feature's name must be a text, got 7"),
    "features.1.name": ("item_id", "feature 'item_id' stands twice in the model"),
    "features.0.role": (
        "itme",
        "feature 'item_id': role must be one of item, user, got 'itme'; did you mean 'item'?",
    ),
    "features.0.kind": ("ids", "feature 'item_id': kind must be one of categorical, "),
    "features.0.pooling": ("max", "feature 'item_id': pooling must be one of mean, sum, got 'max'"),
    "features.0.width": (
        0,
        "feature 'item_id': width must be a whole number of at least 1, got 0",
    ),
    "features.0.vocab_size": (
        0,
        "feature 'item_id': vocab_size must be a whole number of at least 1, got 0",
    ),
    "features.0.shares": (
        "cate_id",
        "feature 'item_id' shares the table of 'cate_id', which is no earlier feature",
    ),
    "features.1.shares": ("item_ids", "its own table; did you mean 'item_id'?"),
    # attention
    "attention.num_heads": (3, "attention: num_heads must divide d = 16, got 3"),
    "attention.pool_rows_k": (-1, "attention: pool_rows_k must be a whole number of at least 0"),
    "attention.pool_rows_v": (
        0,
        "attention: user_v must be d = 16 without a pool, got 1",
    ),
    "attention.user_k": (16, "attention: user_k must be below d = 16 beside a pool, got 16"),
    "attention.user_v": (True, "attention: user_v must be a whole number of at least 0, got True"),
    # the scoring network and the model
    "dnn.activations": (["relu"], "dnn: 2 hidden layers need as many activations, got 1"),
    "dnn.activations.0": (1.5, "dnn: an activation is named by a text, got 1.5"),
    "dnn.hidden.0": (0, "dnn: a hidden width must be a whole number of at least 1, got 0"),
    "window": (1, "window must be a whole number of at least 2, got 1"),
    "max_len": (0, "max_len must be a whole number of at least 1, got 0"),
    "num_layers": ("1", "num_layers must be a whole number of at least 1, got '1'"),
    "mask_alignment": (
        "fuxictl",
        "mask_alignment must be one of aligned, fuxictr, got 'fuxictl'; did you mean 'fuxictr'?",
    ),
}


@pytest.mark.parametrize("path", REFUSED)
def test_refusals_say_what_is_wrong(path: str):
    value, message = REFUSED[path]
    data = changed(make_spec("sim").to_dict(), path, value)
    with pytest.raises(SpecError) as error:
        ModelSpec.from_dict(data)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "path", ["window", "max_len", "features.0.vocab_size", "features.0.length"]
)
def test_sizes_fit_into_int32(path: str):
    plain = make_spec("sim", features=(FeatureSpec("tags", "item", "sequence", 4, 9, 3),)).to_dict()
    ModelSpec.from_dict(changed(plain, path, 2**31 - 1))
    for size in (2**31, 10**30):
        with pytest.raises(SpecError, match=f"must be below 2147483648, .* got {size}"):
            ModelSpec.from_dict(changed(plain, path, size))


@pytest.mark.parametrize(
    "feature", [("age", "user", "numeric", 2), ("time", "item", "timestamp", 0)]
)
def test_model_without_item_feature_is_refused(feature: tuple[str, str, str, int]):
    with pytest.raises(SpecError, match="at least one feature of role 'item'"):
        make_spec("sim", features=(FeatureSpec(*feature),))


def test_an_event_happens_once():
    times = (FeatureSpec(name, "item", "timestamp", 0) for name in ("seen", "bought"))
    with pytest.raises(SpecError, match="at most one timestamp, got seen, bought"):
        make_spec("sim", features=(*RICH, *times))


def test_baseline_without_pool_is_refused():
    with pytest.raises(SpecError, match="a baseline without CollectiveKV"):
        AttentionSpec(8, 1, 8, 8, 0, 0)


def test_unprojected_vector_has_one_width():
    with pytest.raises(SpecError, match=r"as wide as it is long, got width 3 and length 4$"):
        FeatureSpec("image", "item", "vector", 3, length=4)
    assert FeatureSpec("image", "item", "vector", 3, length=4, projected=True).inner == (4,)


@pytest.mark.parametrize(("role", "width"), [("user", 0), ("item", 3)])
def test_a_timestamp_is_of_an_event_and_embeds_nothing(role: str, width: int):
    with pytest.raises(SpecError, match="'time': a timestamp is an item feature of width 0"):
        FeatureSpec("time", role, "timestamp", width)


@pytest.mark.parametrize("kind", ["sequence", "vector"])
def test_sequence_and_vector_need_a_length(kind: str):
    with pytest.raises(SpecError, match="length must be a whole number of at least 1, got 0"):
        FeatureSpec("x", "item", kind, 3, vocab_size=5, projected=True)


def test_sharing_of_a_sharing_table_is_refused():
    third = FeatureSpec("c", "item", "categorical", 4, 5, shares="b")
    second = dataclasses.replace(third, name="b", shares="a")
    first = dataclasses.replace(third, name="a", shares=None)
    assert make_spec("sim", features=(first, second)).features[1].shares == "a"
    with pytest.raises(SpecError, match="'c' shares the table of 'b', which is no earlier"):
        make_spec("sim", features=(first, second, third))
    with pytest.raises(SpecError, match="'b' shares the table of 'a', which is no earlier"):
        make_spec("sim", features=(second, first))


@pytest.mark.parametrize(
    ("owner", "shares"),
    [
        ({}, {"width": 6}),
        ({}, {"vocab_size": 99}),
        ({"kind": "numeric"}, {}),
        ({"kind": "vector", "length": 4}, {}),
    ],
)
def test_shared_table_must_fit_the_feature_that_shares_it(owner: dict, shares: dict):
    """Otherwise the model fails when it runs, by a message about matrices."""
    base = {"name": "a", "role": "item", "kind": "categorical", "width": 4, "vocab_size": 5}
    first = FeatureSpec(**base | owner)
    second = FeatureSpec(**base | shares | {"name": "b", "shares": "a"})
    with pytest.raises(SpecError, match="'b'"):
        make_spec("sim", features=(first, second))


@pytest.mark.parametrize("name", ["mask", "embedding", "k_index", "v_index", "k_user", "v_user"])
def test_names_of_the_graphs_own_tensors_are_reserved(name: str):
    with pytest.raises(SpecError, match=f"a feature can't be called {name!r}"):
        FeatureSpec(name, "item", "categorical", 4, vocab_size=5)


def test_nearest_names_only_what_is_near():
    assert nearest("windw", ["window", "topk"]) == "; did you mean 'window'?"
    assert nearest("zzz", ["window", "topk"]) == ""
    assert nearest("window", []) == ""


def test_widths_are_sums_over_the_features():
    spec = make_spec("sim", features=RICH)
    assert spec.d_event == 6 + 4 + 4 + 3 + 4 + 3
    assert spec.d_user_features == 5 + 2 + 6 + 4 + 3 + 4 + 2
    assert make_spec("sim").d_user_features == 0
    assert [f.name for f in spec.item_features] == [f.name for f in RICH if f.role == "item"]


@given(st.integers(2, 100), st.integers(0, 200))
def test_window_caches_its_last_events_but_one(window: int, events: int):
    cached = make_spec("sim", window=window).cached_events(events)
    assert cached == len(list(range(events))[-(window - 1) :])


def test_dnn_without_hidden_layers_is_allowed():
    assert DnnSpec((), (), True).hidden == ()

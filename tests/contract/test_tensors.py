"""Names, axes and dtypes of the graphs as SPEC section 4 has them."""

from __future__ import annotations

from typing import Any

import pytest
from ckv_testing.draw import RICH, VARIANTS, make_spec

from ckv_export.contract import AttentionSpec, CacheSpec, TensorSpec, decode_io, prefill_io


def names(tensors: tuple[TensorSpec, ...]) -> dict[str, tuple[str, tuple[Any, ...]]]:
    return {t.name: (t.dtype, t.axes) for t in tensors}


def test_graphs_of_a_model_with_ids_alone():
    spec = make_spec("sim")
    d = {"item_id": "int32", "cate_id": "int32"}
    prefill, decode = prefill_io(spec), decode_io(spec)
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert list(names(prefill.inputs).items()) == [
        *((f"event_{f}", (dtype, ("B", "S"))) for f, dtype in d.items()),
        ("event_mask", ("bool", ("B", "S"))),
    ]
    assert list(names(prefill.outputs).items()) == [
        ("cache_k_index", ("int32", ("B", 1, "S"))),
        ("cache_v_index", ("int32", ("B", 1, "S"))),
        ("cache_k_user", ("float32", ("B", 1, "S", 2))),
        ("cache_v_user", ("float32", ("B", 1, "S", 1))),
    ]
    assert list(names(decode.inputs).items()) == [
        ("cache_k_index", ("int32", ("B", 1, "K"))),
        ("cache_v_index", ("int32", ("B", 1, "K"))),
        ("cache_k_user", ("float32", ("B", 1, "K", 2))),
        ("cache_v_user", ("float32", ("B", 1, "K", 1))),
        ("history_mask", ("bool", ("B", "S"))),
        *((f"history_{f}", (dtype, ("B", "S"))) for f, dtype in d.items()),
        *((f"append_{f}", (dtype, ("B", "T"))) for f, dtype in d.items()),
        ("append_mask", ("bool", ("B", "T"))),
        *((f"candidate_{f}", (dtype, ("B", "C"))) for f, dtype in d.items()),
    ]
    assert list(names(decode.outputs).items()) == [
        ("score", ("float32", ("B", "C"))),
        ("append_k_index", ("int32", ("B", 1, "T"))),
        ("append_v_index", ("int32", ("B", 1, "T"))),
        ("append_k_user", ("float32", ("B", 1, "T", 2))),
        ("append_v_user", ("float32", ("B", 1, "T", 1))),
    ]


def test_every_kind_of_feature_has_its_dtype_and_own_axis():
    decode = decode_io(make_spec("eta", features=RICH))
    got = names(decode.inputs)
    of_item = {
        "item_id": ("int32", ()),
        "tags": ("int32", (2,)),
        "words": ("int32", (3,)),
        "price": ("float32", ()),
        "image": ("float32", (5,)),
        "colour": ("float32", (3,)),
    }
    for name, (dtype, inner) in of_item.items():
        assert got[f"history_{name}"] == (dtype, ("B", "S", *inner))
        assert got[f"append_{name}"] == (dtype, ("B", "T", *inner))
        assert got[f"candidate_{name}"] == (dtype, ("B", "C", *inner))
        assert f"user_{name}" not in got
    of_user = {
        "user_id": ("int32", ()),
        "age": ("float32", ()),
        "last_item": ("int32", ()),
        "liked_tags": ("int32", (3,)),
        "topics": ("int32", (4,)),
        "profile": ("float32", (4,)),
        "face": ("float32", (6,)),
    }
    assert [n for n in got if n.startswith("user_")] == [f"user_{name}" for name in of_user]
    for name, (dtype, inner) in of_user.items():
        assert got[f"user_{name}"] == (dtype, ("B", *inner))


@pytest.mark.parametrize("plain", ["k", "v"])
def test_side_without_pool_has_no_index_and_caches_all_of_d(plain: str):
    shared = "v" if plain == "k" else "k"
    attention = {f"user_{plain}": 8, f"pool_rows_{plain}": 0, f"user_{shared}": 3}
    attention |= {f"pool_rows_{shared}": 5}
    spec = make_spec("twin", attention=AttentionSpec(8, 1, **attention))
    cached = names(prefill_io(spec).outputs)
    assert set(cached) == {f"cache_{shared}_index", "cache_k_user", "cache_v_user"}
    assert cached[f"cache_{plain}_user"] == ("float32", ("B", 1, "S", 8))
    assert cached[f"cache_{shared}_user"] == ("float32", ("B", 1, "S", 3))
    decode = decode_io(spec)
    assert f"cache_{plain}_index" not in names(decode.inputs)
    assert f"append_{plain}_index" not in names(decode.outputs)


def test_layers_are_the_second_axis_of_the_cache():
    spec = make_spec("sim", num_layers=3)
    assert all(t.axes[1] == 3 for t in CacheSpec.of(spec).named("cache", "K"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_tensor_of_a_graph_is_named_twice(variant: str):
    spec = make_spec("sim", variant)
    for graph in (prefill_io(spec), decode_io(spec)):
        tensors = [t.name for t in graph.tensors()]
        assert len(set(tensors)) == len(tensors)


def test_shape_replaces_axis_names():
    tensor = TensorSpec("x", "float32", ("B", 2, "S"))
    assert tensor.shape({"B": 0, "S": 7, "C": 1}) == (0, 2, 7)
    with pytest.raises(KeyError):
        tensor.shape({"B": 1})

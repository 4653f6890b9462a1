"""What graphs take for an event, in each of the forms."""

from __future__ import annotations

import dataclasses

import pytest
from ckv_testing.draw import DNN, make_spec
from ckv_testing.forms import ATTENTION, BY_ID, EXTERNAL, HSTU, ITEM, SIM, TIME, WIDE

from ckv_export.contract import (
    EventForm,
    FeatureSpec,
    GraphSpec,
    ModelSpec,
    decode_io,
    decode_items_io,
    item_table_tensors,
    prefill_io,
)
from ckv_export.errors import SpecError


def written(graph: GraphSpec) -> list[str]:
    """Inputs and outputs as ``name dtype axes``; those of the cache left to tests of the cache."""
    cache = ("cache_", "past_k", "past_v", "append_k", "append_v", "item_k", "item_v")
    return [
        f"{t.name} {t.dtype} {' '.join(str(a) for a in t.axes)}"
        for t in graph.tensors()
        if not t.name.startswith(cache)
    ]


def test_graphs_of_external_embeddings():
    assert written(prefill_io(SIM, EXTERNAL)) == [
        "event_embedding float32 B S 12",
        "event_mask bool B S",
    ]
    assert written(decode_io(SIM, EXTERNAL)) == [
        "history_mask bool B S",
        "history_embedding float32 B S 12",
        "append_embedding float32 B T 12",
        "append_mask bool B T",
        "candidate_embedding float32 B C 12",
        "user_embedding float32 B 5",
        "score float32 B C",
    ]


def test_graphs_of_external_embeddings_and_times():
    """Embeddings stand for what is embedded: of a past event only when it was is left."""
    assert written(prefill_io(HSTU, EXTERNAL)) == [
        "event_embedding float32 B S 12",
        "event_time int32 B S",
        "event_mask bool B S",
        "past_mask bool B K",
        "past_time int32 B K",
    ]
    assert written(decode_io(HSTU, EXTERNAL)) == [
        "history_mask bool B S",
        "history_time int32 B S",
        "append_embedding float32 B T 12",
        "append_time int32 B T",
        "append_mask bool B T",
        "candidate_embedding float32 B C 12",
        "candidate_time int32 B C",
        "user_embedding float32 B 5",
        "score float32 B C",
    ]


def test_graphs_of_ids_alone():
    assert written(prefill_io(SIM, BY_ID)) == ["event_item_id int32 B S", "event_mask bool B S"]
    request = [
        "history_mask bool B S",
        "history_item_id int32 B S",
        "append_item_id int32 B T",
        "append_mask bool B T",
        "candidate_item_id int32 B C",
        "user_age float32 B",
        "user_face float32 B 7",
        "score float32 B C",
    ]
    assert written(decode_io(SIM, BY_ID)) == request
    table = item_table_tensors(SIM, 8, "float32")
    by_items = decode_items_io(SIM, BY_ID, table)
    assert written(by_items) == ["item_long_key float32 I 8", *request]
    assert by_items.name == "decode_items"
    assert [t.name for t in by_items.outputs] == ["score"]
    assert [f"{t.name} {t.dtype} {t.axes}" for t in table] == [
        "item_k_index int32 ('I',)",
        "item_v_index int32 ('I',)",
        "item_k_user float32 ('I', 2)",
        "item_v_user float32 ('I', 1)",
        "item_long_key float32 ('I', 8)",
    ]


def test_graphs_of_ids_alone_and_times():
    """A time is no constant of an item: it is given beside the id."""
    assert written(prefill_io(HSTU, BY_ID)) == [
        "event_item_id int32 B S",
        "event_time int32 B S",
        "event_mask bool B S",
        "past_mask bool B K",
        "past_time int32 B K",
    ]
    assert written(decode_io(HSTU, BY_ID)) == [
        "history_mask bool B S",
        "history_time int32 B S",
        "append_item_id int32 B T",
        "append_time int32 B T",
        "append_mask bool B T",
        "candidate_item_id int32 B C",
        "candidate_time int32 B C",
        "user_age float32 B",
        "user_face float32 B 7",
        "score float32 B C",
    ]


def test_pools_as_inputs_are_those_that_a_graph_reads():
    """Prefill of HSTU reads those of all layers but the last, prefill of a window none."""
    form = EventForm(pools="float16")

    def pools(graph: GraphSpec) -> list[str]:
        return [line for line in written(graph) if line.startswith("pool_")]

    below = ["pool_k_0 float16 10 30", "pool_v_0 float16 7 31"]
    assert pools(prefill_io(HSTU, form)) == below
    last = ["pool_k_1 float16 10 30", "pool_v_1 float16 7 31"]
    assert pools(decode_io(HSTU, form)) == [*below, *last]
    assert pools(prefill_io(SIM, form)) == pools(decode_io(SIM)) == []
    plain_k = dataclasses.replace(ATTENTION, user_k=8, pool_rows_k=0)
    spec = dataclasses.replace(SIM, attention=plain_k)
    assert pools(decode_io(spec, form)) == ["pool_v_0 float16 7 7"]
    with pytest.raises(SpecError, match="one of float32, float16, got 'bfloat16'"):
        EventForm(pools="bfloat16")


@pytest.mark.parametrize("spec", [SIM, HSTU], ids=["sim", "hstu"])
@pytest.mark.parametrize("form", [EXTERNAL, BY_ID], ids=["external", "ids"])
def test_the_cache_is_the_same_whatever_events_look_like(spec: ModelSpec, form: EventForm):
    for io in (prefill_io, decode_io):
        inline, other = io(spec), io(spec, form)
        cache = ("cache_", "past_k", "past_v", "append_k", "append_v")
        for one, two in ((inline.inputs, other.inputs), (inline.outputs, other.outputs)):
            kept = [[t for t in side if t.name.startswith(cache)] for side in (one, two)]
            assert kept[0] == kept[1]
        assert any(t.name.startswith(cache) for t in inline.tensors())
        assert inline.outputs == other.outputs


def test_without_user_features_there_is_no_user_embedding():
    spec = make_spec("sim", features=ITEM)
    assert not any("user_embedding" in t.name for t in decode_io(spec, EXTERNAL).inputs)


# -- refusals


def test_external_and_looked_up_exclude_each_other():
    with pytest.raises(SpecError) as caught:
        EventForm("external", "item_id")
    assert str(caught.value) == (
        "external embeddings and looked-up item features exclude each other: the graph takes "
        "embeddings or ids"
    )


def test_another_way_is_refused():
    with pytest.raises(SpecError) as caught:
        EventForm("extern")
    assert str(caught.value) == (
        "embeddings must be one of inline, external, got 'extern'; did you mean 'external'?"
    )


@pytest.mark.parametrize("role", ["item", "user"])
@pytest.mark.parametrize("name", ["mask", "embedding", "k_index", "v_index", "k_user", "v_user"])
def test_features_named_as_tensors_of_the_graphs_are_refused(name: str, role: str):
    with pytest.raises(SpecError) as caught:
        FeatureSpec(name, role, "categorical", 4, vocab_size=5)
    assert str(caught.value).startswith(f"a feature can't be called {name!r}: ")


@pytest.mark.parametrize("form", [EventForm(), EXTERNAL, BY_ID], ids=["inline", "external", "ids"])
@pytest.mark.parametrize("name", ["long_key", "score", "event", "mask_k", "item_id"])
def test_no_other_name_makes_two_tensors_of_one_name(name: str, form: EventForm):
    named = [
        FeatureSpec(name, "item", "categorical", 4, vocab_size=5),
        FeatureSpec(f"{name}s", "user", "categorical", 2, vocab_size=5),
    ]
    features = (*(f for f in ITEM if f.name != name), *named)
    sim = make_spec("sim", features=features, attention=ATTENTION)
    hstu = ModelSpec("hstu", (*features, TIME), WIDE, DNN, 20, num_layers=2)
    graphs = [io(spec, form) for spec in (sim, hstu) for io in (prefill_io, decode_io)]
    graphs.append(decode_items_io(sim, form, item_table_tensors(sim, 8, "float32")))
    for graph in graphs:
        names = [t.name for t in graph.tensors()]
        assert len(set(names)) == len(names), graph.name

"""Batches are what a slow loop over users and events puts together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ckv_testing.records import LAYOUTS, MANIFESTS, PADDING, cut, user

from ckv_export.cache.record import (
    RecordLayout,
    batch,
    decode,
    encode,
    kept_events,
    past,
    user_events,
)
from ckv_export.contract import Range
from ckv_export.errors import InputError, RecordError

every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
LENGTHS = (3, 0, 1, 23, 4, 5, 20)


def slow_batch(layout, records, size: int, padding: bool = False) -> dict[str, np.ndarray]:
    users = [decode(layout, record) for record in records]
    mask = np.zeros((len(users), size), bool)
    tensors = {}
    for field in layout.fields:
        whole = field in layout.events.fields
        length = size if whole else min(size, layout.cap)
        rows = []
        for number, arrays in enumerate(users):
            row = np.zeros(field.tensor_shape(length), field.dtype)
            if padding and field.name in PADDING:
                np.moveaxis(row, field.axis, 0)[:] = np.reshape(PADDING[field.name], field.shape)
            events = np.moveaxis(arrays[field.name], field.axis, 0)
            for back in range(1, min(len(events), length) + 1):
                np.moveaxis(row, field.axis, 0)[-back] = events[-back]
                mask[number, -back] |= whole
            rows.append(row)
        tensors[field.name] = np.stack(rows)
    return tensors | {"history_mask": mask}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("size", [None, 0, 1, 3, 4, 40])
@pytest.mark.parametrize("lengths", [LENGTHS, (4, 23, 20)], ids=["short and long", "long"])
def test_every_batch(name, lengths, size, rng):
    layout = LAYOUTS[name]
    records = [encode(layout, user(layout, n, rng)) for n in lengths]
    got = batch(layout, records, size)
    padded = {None: 20 if layout.pad_to else 23}.get(size, size)
    wanted = slow_batch(layout, records, padded, name.startswith("padding of its own"))
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].flags.c_contiguous
        assert got[name].flags.writeable
        np.testing.assert_array_equal(got[name], tensor, err_msg=name)


@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_a_batch_has_the_inputs_of_its_graph(name, rng):
    manifest, layout = MANIFESTS[name], LAYOUTS[f"{name}, float16"]
    graph = manifest.graph("decode_items" if manifest.item_table else "decode")
    spec = manifest.model
    tensors = batch(layout, [encode(layout, user(layout, n, rng)) for n in (2, 9)], 9)
    sizes = {"B": 2, "S": 9, "K": spec.cached_events(9)}
    wanted = [t for t in graph.inputs if t.name.startswith(("cache_", "history_"))]
    assert {t.name: (t.dtype, t.shape(sizes)) for t in wanted} == {
        n: (a.dtype.name, a.shape) for n, a in tensors.items()
    }


@pytest.mark.parametrize(("longest", "padded"), [(7, 7), (99, 20)])
def test_a_batch_is_as_long_as_model_and_engine_take(longest: int, padded: int):
    """A target-attention model was trained with 20 events; HSTU scores any history as it is."""
    for name, pad_to, kept in (("two ids", padded, padded), ("HSTU", None, longest)):
        manifest = MANIFESTS[name]
        profile = manifest.profile.replaced(manifest.model, {"S": Range(0, 1, longest)})
        manifest = dataclasses.replace(manifest, profile=profile)
        layout = RecordLayout.of(manifest)
        assert layout.pad_to == pad_to
        assert kept_events(layout, manifest) == kept_events(layout, manifest, kept) == kept
        assert kept_events(layout, manifest, 3) == 3
        with pytest.raises(InputError, match=f"at most {kept} for toy, .* got {kept + 1}:"):
            kept_events(layout, manifest, kept + 1)


@every_layout
def test_no_users(layout):
    for name, tensor in batch(layout, [], 5).items():
        assert tensor.shape[0] == 0, name
    assert batch(layout, [])["history_mask"].shape == (0, layout.pad_to or 0)


def test_the_past_of_a_chunked_prefill_is_the_batch_under_its_names(rng):
    manifest, layout = MANIFESTS["HSTU with time"], LAYOUTS["HSTU with time, float32"]
    records = [encode(layout, user(layout, n, rng)) for n in (4, 0, 7)]
    tensors = past(layout, records)
    names = [t.name for t in manifest.graph("prefill").inputs if t.name.startswith("past_")]
    assert sorted(tensors) == sorted(names)
    for name, tensor in batch(layout, records).items():
        np.testing.assert_array_equal(tensors["past_" + name.split("_", 1)[1]], tensor)
    assert past(layout, records, 9)["past_mask"].shape == (3, 9)
    for name in ("two ids, float32", "item table, float32"):
        with pytest.raises(RecordError, match="caches its whole history"):
            past(LAYOUTS[name], [])


@every_layout
@pytest.mark.parametrize(
    ("graph", "entry", "event"), [("prefill", "cache", "event"), ("decode", "append", "append")]
)
def test_real_events_of_a_call(layout, graph, entry, event, rng):
    users = [user(layout, 6, rng) for _ in range(3)]
    mask = rng.random((3, 6)) < 0.5
    tensors = {f"{event}_mask": mask}
    for field in layout.fields:
        kind, suffix = field.name.split("_", 1)
        stacked = np.stack([arrays[field.name] for arrays in users])
        tensors[f"{entry if kind == 'cache' else event}_{suffix}"] = stacked
    for number, arrays in enumerate(users):
        got = user_events(layout, tensors, number, graph=graph)
        assert got.keys() == {f.name for f in layout.fields}
        for field in layout.fields:
            kept = [cut(layout, arrays, e, e + 1)[field.name] for e in np.flatnonzero(mask[number])]
            none = arrays[field.name][:0] if field.axis == 0 else arrays[field.name][:, :0]
            wanted = np.concatenate([none, *kept], axis=field.axis)
            np.testing.assert_array_equal(got[field.name], wanted)


def test_a_batch_of_less_than_nothing():
    with pytest.raises(RecordError, match="0 events or more, got -1"):
        batch(LAYOUTS["two ids, float16"], [], -1)


def test_a_call_without_its_tensors():
    layout = LAYOUTS["two ids, float16"]
    with pytest.raises(RecordError, match="lack 'append_mask'"):
        user_events(layout, {}, 0)
    with pytest.raises(RecordError, match="prefill, decode, got 'dekode'"):
        user_events(layout, {}, 0, graph="dekode")

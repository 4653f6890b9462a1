"""Bytes of a user: as many as are counted, and the same arrays back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ckv_testing.draw import make_spec

from ckv_export.bench.pinned import PinnedStore, landed
from ckv_export.bench.stored import FileStore, Layout, Store, full_cache_spec
from ckv_export.cache import cache_sizes
from ckv_export.contract import AttentionSpec, CacheSpec, ModelSpec
from ckv_export.errors import ExportError

SPECS = {
    "both": make_spec("sim"),
    "V alone": make_spec("eta", "K not shared, biases, 4 heads"),
    "many rows": make_spec("sim", attention=AttentionSpec(16, 4, 2, 1, 70_000, 65_536)),
    "no user part": make_spec("sim", attention=AttentionSpec(16, 4, 0, 0, 9, 9)),
}


def drawn(cache: CacheSpec, users: int, events: int, rng: np.random.Generator) -> dict:
    arrays = {}
    for suffix, dtype, width in cache.tensors:
        shape = (users, cache.layers, events) + (() if width is None else (width,))
        values = rng.integers(0, 9, shape) if dtype == "int32" else rng.standard_normal(shape)
        arrays[f"cache_{suffix}"] = values.astype(dtype)
    return arrays


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("floats", ["fp32", "fp16"])
def test_as_many_bytes_as_the_report_counts(spec: ModelSpec, floats: str):
    sizes = cache_sizes(spec, floats, history=3)
    layout = Layout(spec, CacheSpec.of(spec), floats)
    assert 3 * layout.bytes_per_event == sizes.compact_bytes
    full = sizes.full[("fp16", "fp32").index(floats)].bytes_per_user
    assert 3 * Layout(spec, full_cache_spec(spec), floats).bytes_per_event == full


@pytest.mark.parametrize("source", ["memory", "file", "pinned"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.usefixtures("unpinned")
def test_users_come_back_right_aligned(
    spec: ModelSpec, source: str, rng: np.random.Generator, tmp_path: Path
):
    layout = Layout(spec, CacheSpec.of(spec))
    users = [drawn(layout.cache, 1, events, rng) for events in (0, 1, 4)]
    blobs = [layout.pack(u, 0) for u in users]
    with (tmp_path / "stores").open("w+b") as file:
        made = {
            "memory": Store,
            "file": lambda blobs: FileStore(blobs, file),
            "pinned": PinnedStore,
        }
        stores = [made[source](given) for given in ([b"another's"], blobs, blobs[::-1])]
        got = stores[1].unpack(layout, [2, 0, 1], 4)
    for name, array in got.items():
        for place, user in enumerate((2, 0, 1)):
            events = users[user][name].shape[2]
            np.testing.assert_array_equal(array[place][:, 4 - events :], users[user][name][0])
            assert not array[place][:, : 4 - events].any()


@pytest.mark.parametrize("events", [5, 600])
def test_users_of_one_length_or_many_come_back_alike(events: int, rng: np.random.Generator):
    """Unpacked together where they are small, one by one where they are large (76 kB)."""
    spec = SPECS["both"]
    layout = Layout(spec, full_cache_spec(spec))
    lengths = (events, events, 1, 0, 0, events)
    users = [drawn(layout.cache, 1, n, rng) for n in lengths]
    got = layout.unpack([layout.pack(u, 0) for u in users], events)
    for name, array in got.items():
        assert array.shape[0] == len(lengths)
        for row, user, n in zip(array, users, lengths, strict=True):
            np.testing.assert_array_equal(row[:, events - n :], user[name][0])
            assert not row[:, : events - n].any()


@pytest.mark.parametrize("full", [False, True], ids=["compact", "full"])
@pytest.mark.parametrize("floats", ["fp32", "fp16"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.usefixtures("unpinned")
def test_what_a_device_copies_by_itself_is_what_the_host_unpacks(
    spec: ModelSpec, floats: str, full: bool, rng: np.random.Generator
):
    layout = Layout(spec, full_cache_spec(spec) if full else CacheSpec.of(spec), floats)
    users = [drawn(layout.cache, 1, events, rng) for events in (4, 0, 1)]
    blobs = PinnedStore([layout.pack(u, 0) for u in users]).fetch([0, 1, 2])
    wanted, got = layout.unpack(blobs, 5), landed(layout, blobs, 5, "cpu")
    assert wanted.keys() == got.keys()
    for name, array in wanted.items():
        assert (got[name].shape, got[name].dtype) == (array.shape, array.dtype)
        value = got[name].value.numpy()
        assert value.dtype == array.dtype
        np.testing.assert_array_equal(value, array)


@pytest.mark.usefixtures("unpinned")
def test_pinned_bytes_are_read_where_they_lie(rng: np.random.Generator):
    store = PinnedStore([rng.bytes(8), rng.bytes(5)])
    first, again = store.fetch([1, 0]), store.fetch([0, 1])
    for one, other in zip(first, reversed(again), strict=True):
        assert np.shares_memory(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))
    assert store.lands
    assert not Store([b""]).lands


def test_memory_that_can_not_be_pinned_is_told(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **options: object) -> torch.Tensor:
        assert options["pin_memory"] is True
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(ExportError, match=r"can't pin 7 bytes of the host's memory: out of memory"):
        PinnedStore([b"7 bytes"])

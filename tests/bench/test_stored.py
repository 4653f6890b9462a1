"""Bytes of a user: as many as are counted, and the same arrays back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ckv_testing.draw import make_spec

from ckv_export.bench.stored import Layout, Store, full_cache_spec
from ckv_export.cache import cache_sizes
from ckv_export.contract import AttentionSpec, CacheSpec, ModelSpec

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


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_users_come_back_right_aligned(
    spec: ModelSpec, in_file: bool, rng: np.random.Generator, tmp_path: Path
):
    layout = Layout(spec, CacheSpec.of(spec))
    users = [drawn(layout.cache, 1, events, rng) for events in (0, 1, 4)]
    store = Store([layout.pack(u, 0) for u in users], tmp_path / "store" if in_file else None)
    got = layout.unpack(store.fetch([2, 0, 1]), 4)
    store.close()
    for name, array in got.items():
        for place, user in enumerate((2, 0, 1)):
            events = users[user][name].shape[2]
            np.testing.assert_array_equal(array[place][:, 4 - events :], users[user][name][0])
            assert not array[place][:, : 4 - events].any()

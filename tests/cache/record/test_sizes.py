"""What the cache report says a user costs is what a record of that user takes."""

from __future__ import annotations

import pytest
from ckv_testing.records import MANIFESTS, user

from ckv_export.cache import cache_sizes
from ckv_export.cache.record import RecordLayout, encode


@pytest.mark.parametrize("user_dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", sorted(MANIFESTS))
@pytest.mark.parametrize("events", [0, 1, 4, 5, 30])
def test_record_bytes(name, user_dtype, events, rng):
    manifest = MANIFESTS[name]
    layout = RecordLayout.of(manifest, user_dtype, graph="decode")
    sizes = cache_sizes(manifest.model, user_dtype, form=manifest.form, history=events)
    assert sizes.record_bytes == len(encode(layout, user(layout, events, rng)))
    assert sizes.to_dict()["record_bytes"] == sizes.record_bytes

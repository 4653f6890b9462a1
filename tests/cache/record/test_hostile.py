"""No damaged, foreign or made-up record is read, and each refusal says what is wrong."""

from __future__ import annotations

import dataclasses
import itertools
import struct
import zlib

import numpy as np
import pytest
from ckv_testing.records import ITEM, LAYOUTS, MANIFESTS, RICH, cut, manifest, user
from hypothesis import given, settings
from hypothesis import strategies as st

from ckv_export.cache.record import (
    HEADER_BYTES,
    RecordLayout,
    append,
    batch,
    count,
    decode,
    encode,
    size,
)
from ckv_export.contract import EventForm
from ckv_export.errors import RecordError
from ckv_export.manifest import Manifest

SOME = ("two ids, float16", "every kind of feature, int8", "HSTU with time, float32")
some_layouts = pytest.mark.parametrize("name", SOME)


def resealed(data: bytes) -> bytes:
    """`data` with all its checksums made right again, as an attacker would."""
    body = bytearray(data)
    rows, row = struct.unpack_from("<I4xI", body, 36)
    window = HEADER_BYTES + rows * row
    struct.pack_into("<I", body, 48, zlib.crc32(body[HEADER_BYTES:window]))
    struct.pack_into("<I", body, 52, zlib.crc32(body[window:]))
    struct.pack_into("<I", body, 60, zlib.crc32(body[:60]))
    return bytes(body)


def all_refuse(layout: RecordLayout, data: bytes) -> None:
    with pytest.raises(RecordError):
        decode(layout, data)
    with pytest.raises(RecordError):
        batch(layout, [data])


@some_layouts
def test_every_truncation(name, rng):
    layout = LAYOUTS[name]
    data = encode(layout, user(layout, 3, rng))
    for length in range(len(data)):
        with pytest.raises(RecordError, match="truncated"):
            decode(layout, data[:length])
        with pytest.raises(RecordError, match="truncated"):
            count(layout, data[:length])


@some_layouts
def test_every_flipped_bit(name, rng):
    layout = LAYOUTS[name]
    data = encode(layout, user(layout, 3, rng))
    for position, bit in itertools.product(range(len(data)), range(8)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << bit
        with pytest.raises(RecordError):
            decode(layout, flipped)


@some_layouts
def test_bytes_behind_a_record(name, rng):
    layout = LAYOUTS[name]
    data = encode(layout, user(layout, 2, rng))
    with pytest.raises(RecordError, match="followed by other bytes"):
        decode(layout, data + b"\0")
    with pytest.raises(RecordError, match="followed by other bytes"):
        append(layout, data + b"\0", user(layout, 1, rng))
    assert size(layout, data + b"\0") == len(data)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300), seal=st.booleans(), name=st.sampled_from(SOME))
def test_garbage(data: bytes, seal: bool, name: str):
    layout = LAYOUTS[name]
    if seal and len(data) >= HEADER_BYTES:
        data = resealed(b"CKVR\1\0\x40\0" + data[8:])
    all_refuse(layout, data)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    name=st.sampled_from(sorted(LAYOUTS)),
)
def test_edited_records_with_right_checksums_give_only_what_is_allowed(seed, edits, name):
    """Whoever can write checksums can write numbers, but none that a kernel must not see."""
    layout = LAYOUTS[name]
    body = bytearray(encode(layout, user(layout, 3, np.random.default_rng(seed))))
    for position, byte in edits:
        body[position % len(body)] = byte
    try:
        arrays = decode(layout, resealed(bytes(body)))
    except RecordError:
        return
    for field in layout.fields:
        values = arrays[field.name]
        assert np.isfinite(values).all()
        if field.rows is not None and values.size:
            assert values.min() >= 0
            assert values.max() < field.rows


@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_records_of_another_layout(name, rng):
    layout = LAYOUTS[f"{name}, float16"]
    data = encode(layout, user(layout, 2, rng))
    for other in LAYOUTS.values():
        if other.describe() != layout.describe():
            with pytest.raises(RecordError, match=r"another layout .*, which is window \d+; .*$"):
                count(other, data)


def test_records_of_another_model(rng):
    mine, other = (RecordLayout.of(manifest(fingerprint=f * 32)) for f in ("ab", "cd"))
    data = encode(mine, user(mine, 2, rng))
    with pytest.raises(RecordError, match=f"of model {'ab' * 16}, this is {'cd' * 16}: prefill"):
        decode(other, data)
    with pytest.raises(RecordError, match="record 1 of the batch: the record is of model"):
        batch(other, [encode(other, user(other, 1, rng)), data])
    with pytest.raises(RecordError, match="of model"):
        append(other, data, user(other, 1, rng))


def test_records_outlive_new_pools_and_no_new_router(rng):
    of = {"entries": "11" * 32}
    old = dataclasses.replace(manifest(), fingerprints=of)
    data = encode(RecordLayout.of(old), user(RecordLayout.of(old), 2, rng))
    pools = dataclasses.replace(old, fingerprint="cd" * 32)
    assert count(RecordLayout.of(pools), data) == 2
    router = dataclasses.replace(pools, fingerprints={"entries": "22" * 32})
    with pytest.raises(RecordError, match=f"of model {'11' * 16}, this is {'22' * 16}"):
        count(RecordLayout.of(router), data)


def test_records_of_ids_go_by_what_ids_mean(rng):
    def bundle(letter: str, **ids: str) -> Manifest:
        form, prints = EventForm(item_key="item_id"), {"entries": letter * 64, **ids}
        return manifest(ITEM, form=form, items=True, fingerprints=prints)

    named = RecordLayout.of(bundle("a", ids="1d" * 32))
    data = encode(named, user(named, 2, rng))
    assert count(RecordLayout.of(bundle("b", ids="1d" * 32)), data) == 2
    hint = r"prefill the user again, or export with that one's --item-ids if item ids mean the same"
    for other in (bundle("b"), bundle("a"), bundle("b", ids="2d" * 32)):
        with pytest.raises(RecordError, match=hint):
            count(RecordLayout.of(other), data)
    # Entries depend on the model, whatever its ids mean.
    entries = RecordLayout.of(bundle("a", ids="1d" * 32), graph="decode")
    assert entries.fingerprint == b"\xaa" * 16
    data = encode(entries, user(entries, 2, rng))
    with pytest.raises(RecordError, match=r"prefill the user again$"):
        count(RecordLayout.of(bundle("b", ids="1d" * 32), graph="decode"), data)


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (0, b"CKVS", "no cache record: it starts with b'CKVS', not b'CKVR'"),
        (4, b"\0\0", "format version 0,"),
        (4, b"\2\0", "format version 2, this library reads 1: prefill the user again"),
        (6, b"\x41\0", "contradicts its layout"),
        (28, b"\2", "contradicts its layout"),
        (31, b"\1", "contradicts its layout"),
        (32, b"\2\0\0\0", "contradicts itself: 3 window rows for 2 events, must be 2"),
        (32, b"\4\0\0\0", "contradicts itself: 3 window rows for 4 events, must be 4"),
        (36, b"\2\0\0\0", "contradicts itself: 2 window rows for 3 events, must be 3"),
        (40, b"\7\0\0\0", "contradicts its layout"),
        (44, b"\7\0\0\0", "contradicts its layout"),
        (56, b"\1\0\0\0", "contradicts its layout"),
        (60, b"\0\0\0\0", "header is damaged"),
    ],
)
def test_each_field_of_the_header(offset: int, value: bytes, words: str, rng):
    layout = LAYOUTS["two ids, float16"]
    body = bytearray(encode(layout, user(layout, 3, rng)))
    body[offset : offset + len(value)] = value
    if offset < 60:
        struct.pack_into("<I", body, 60, zlib.crc32(body[:60]))
    with pytest.raises(RecordError, match=words):
        decode(layout, body)


def test_a_count_that_is_too_large_for_memory(rng):
    layout = LAYOUTS["HSTU, float16"]
    body = bytearray(encode(layout, user(layout, 3, rng)))
    struct.pack_into("<I", body, 32, 2**32 - 1)
    struct.pack_into("<I", body, 60, zlib.crc32(body[:60]))
    with pytest.raises(RecordError, match="truncated: 4294967295 events take"):
        decode(layout, body)


@pytest.mark.parametrize(
    ("name", "field", "bad", "words"),
    [
        ("two ids, float16", "cache_k_index", 10, r"must lie in \[0, 10\), got 10"),
        ("two ids, float16", "history_item_id", 70000, r"must lie in \[0, 70000\), got 70000"),
        ("two ids, float16", "history_cate_id", -1, r"must lie in \[0, 5\), got -1"),
        ("V without a pool, wide rows, int8", "cache_k_index", 65537, r"\[0, 65537\), got 65537"),
        ("V without a pool, wide rows, int8", "cache_k_index", -1, r"got -1"),
        ("two ids, float16", "cache_k_user", np.nan, "NaN or infinity"),
        ("two ids, float32", "cache_v_user", np.inf, "NaN or infinity"),
        ("every kind of feature, int8", "cache_v_user_scale", np.inf, "NaN or infinity"),
        ("every kind of feature, int8", "cache_v_user_scale", -1.0, "scale of .* is negative"),
        ("every kind of feature, int8", "history_image", -np.inf, "NaN or infinity"),
    ],
)
def test_values_that_no_kernel_may_see(name: str, field: str, bad: float, words: str, rng):
    layout = LAYOUTS[name]
    data = bytearray(encode(layout, user(layout, 3, rng)))
    inside = field in (layout.window.row.names or ())
    section = layout.window if inside else layout.events
    start = HEADER_BYTES if inside else len(data) - 3 * layout.events.row_bytes
    rows = np.frombuffer(data, section.row, min(3, layout.cap) if inside else 3, start)
    rows[field][-1] = bad
    all_refuse(layout, resealed(bytes(data)))
    with pytest.raises(RecordError, match=words):
        decode(layout, resealed(bytes(data)))


def test_what_can_not_be_encoded(rng):
    layout = LAYOUTS["two ids, float16"]
    good = user(layout, 3, rng)

    def refused(words: str, **changes: np.ndarray) -> None:
        with pytest.raises(RecordError, match=words):
            encode(layout, good | changes)

    refused("no 'history_itm_id'; did you mean", history_itm_id=good["history_item_id"])
    wrong = {n: a for n, a in good.items() if n != "history_item_id"} | {"history_itm_id": 0}
    with pytest.raises(RecordError, match=r"needs 'history_item_id', .* did you mean 'history_itm"):
        encode(layout, wrong)
    refused(r"must have shape \[1, n, 2\], got \[3, 2\]", cache_k_user=good["cache_k_user"][0])
    refused(r"shape \[1, n\], got \[2, 3\]", cache_k_index=np.zeros((2, 3), np.int32))
    refused(r"'history_item_id' must have shape \[n\], got \[\]", history_item_id=np.int32(3))
    refused("must be int32, got float32", history_item_id=np.zeros(3, np.float32))
    refused("must be float32, got int32", cache_k_user=np.zeros((1, 3, 2), np.int32))
    refused("as many events each", history_cate_id=good["history_cate_id"][1:])
    refused("as many events each", cache_k_index=good["cache_k_index"][:, 1:])
    refused(r"must lie in \[0, 10\), got 10", cache_k_index=np.full((1, 3), 10))
    refused(rf"\[0, 10\), got {2**64 - 1}", cache_k_index=np.full((1, 3), 2**64 - 1, np.uint64))
    one = user(layout, 1, rng) | {"cache_k_index": np.full((1, 1), 10)}
    with pytest.raises(RecordError, match=r"\[0, 10\), got 10"):
        encode(layout, one)
    refused(r"\[0, 5\), got -1", history_cate_id=np.array([0, -1, 2]))
    refused("NaN or numbers too large", cache_v_user=np.full((1, 3, 3), np.nan, np.float32))
    refused("NaN or numbers too large", cache_v_user=np.full((1, 3, 3), 1e39))
    refused("holds 70000, too large for float16", cache_v_user=np.full((1, 3, 3), 7e4))
    coarse = LAYOUTS["two ids, int8"]
    with pytest.raises(RecordError, match=r"holds 1e\+08, too large for int8"):
        encode(coarse, good | {"cache_v_user": np.full((1, 3, 3), -1e8)})
    timed = LAYOUTS["HSTU with time, float16"]
    for seconds in (2**31, -(2**31) - 1):
        late = user(timed, 2, rng) | {"history_time": np.array([7, seconds])}
        with pytest.raises(RecordError, match=rf"2147483648\), got {seconds}"):
            encode(timed, late)


def test_the_graph_and_dtype_must_exist():
    with pytest.raises(RecordError, match="'flaot16'; did you mean 'float16'"):
        RecordLayout.of(manifest(), "flaot16")
    with pytest.raises(RecordError, match="one of decode, got 'decode_items'"):
        RecordLayout.of(manifest(), graph="decode_items")
    for short in ("abc", "abcd"):
        with pytest.raises(RecordError, match=f"64 hex digits, got '{short}'"):
            RecordLayout.of(manifest(fingerprint=short))
    halves = manifest(fingerprint="ab" * 16 + "cd" * 16)
    assert RecordLayout.of(halves).fingerprint == bytes.fromhex("ab" * 16)


def test_a_bundle_with_an_item_table_keeps_ids_unless_told_otherwise(rng):
    items = manifest(*RICH, form=EventForm(item_key=ITEM.name), items=True)
    assert RecordLayout.of(items).describe() == "window 0\nevents history_item_id int32 1\n"
    assert RecordLayout.of(items).events.row_bytes == 4
    assert RecordLayout.of(items).codes == (0, 0, 0)
    decode_layout = RecordLayout.of(items, graph="decode")
    assert decode_layout.window.fields
    assert cut(decode_layout, user(decode_layout, 3, rng), 1, 2)

"""Records come back as they were, and are the bytes that RECORD.md describes."""

from __future__ import annotations

import numpy as np
import pytest
from ckv_testing.records import LAYOUTS, cut, manifest, slow_encode, user

from ckv_export.cache.record import (
    HEADER_BYTES,
    RecordLayout,
    append,
    append_into,
    count,
    decode,
    empty,
    encode,
    size,
)
from ckv_export.cache.record.header import Header
from ckv_export.errors import RecordError

EVENTS = (0, 1, 2, 3, 4, 5, 6, 23)
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def bound(field, values: np.ndarray) -> np.ndarray:
    """How far a user part may come back from where it was, as RECORD.md states it."""
    if field.stored == "float16":
        return np.maximum(np.abs(values) * 2.0**-11, 2.0**-25)
    if field.stored == "int8":
        most = np.abs(values).max(-1, keepdims=True, initial=0.0).astype(np.float64) / 127
        return np.broadcast_to(0.5 * (most * (1 + 2.0**-10) + 2.0**-24), values.shape)
    return np.zeros(values.shape)


def assert_same(layout: RecordLayout, got: dict, given: dict, events: int) -> None:
    assert list(got) == [f.name for f in layout.fields]
    for field in layout.fields:
        kept = events if field in layout.events.fields else min(events, layout.cap)
        wanted = np.take(given[field.name], np.arange(events - kept, events), axis=field.axis)
        assert got[field.name].dtype == field.dtype
        assert got[field.name].shape == wanted.shape
        error = np.abs(got[field.name].astype(np.float64) - wanted.astype(np.float64))
        assert (error <= bound(field, wanted) * (1 + 1e-6)).all(), field.name


@every_layout
def test_round_trip_and_bytes_are_those_of_the_slow_writer(layout, rng):
    for events in EVENTS:
        arrays = user(layout, events, rng)
        data = encode(layout, arrays)
        assert data == slow_encode(layout, arrays, events)
        assert len(data) == size(layout, data)
        assert count(layout, data) == events
        assert_same(layout, decode(layout, data), arrays, events)


@every_layout
def test_decoding_and_encoding_again_changes_nothing(layout, rng):
    if layout.user_dtype == "int8":
        pytest.skip("the scale of a tiny vector may shrink: int8 promises a distance, no more")
    data = encode(layout, user(layout, 17, rng))
    assert encode(layout, decode(layout, data)) == data


@every_layout
def test_append_writes_what_encoding_everything_writes(layout, rng):
    for first, second in ((0, 0), (0, 1), (3, 1), (1, 9), (4, 1), (9, 0), (20, 3)):
        arrays = user(layout, first + second, rng)
        data = encode(layout, cut(layout, arrays, 0, first))
        grown = append(layout, data, cut(layout, arrays, first, first + second))
        assert grown == encode(layout, arrays)


@every_layout
def test_oldest_events_go_beyond_the_cap(layout, rng):
    for first, second, most in ((9, 2, 10), (9, 2, 3), (3, 9, 4), (20, 0, 1), (5, 5, 0), (2, 2, 9)):
        total = first + second
        arrays = user(layout, total, rng)
        data = encode(layout, cut(layout, arrays, 0, first))
        new = cut(layout, arrays, first, total)
        kept = cut(layout, arrays, max(total - most, 0), total)
        assert append(layout, data, new, max_events=most) == encode(layout, kept)


@every_layout
def test_an_empty_record_is_a_header(layout, rng):
    assert empty(layout) == encode(layout, user(layout, 0, rng))
    assert len(empty(layout)) == HEADER_BYTES
    arrays = user(layout, 7, rng)
    assert append(layout, empty(layout), arrays) == encode(layout, arrays)


@every_layout
def test_append_into_a_buffer_with_room(layout, rng):
    arrays = user(layout, 12, rng)
    buffer = bytearray(rng.bytes(5000))
    data = encode(layout, cut(layout, arrays, 0, 2))
    buffer[: len(data)] = data
    behind = bytes(buffer)
    for start, end in ((2, 3), (3, 9), (9, 12)):
        length = append_into(layout, memoryview(buffer), cut(layout, arrays, start, end))
        assert buffer[:length] == encode(layout, cut(layout, arrays, 0, end))
        assert size(layout, buffer) == length
        assert buffer[length:] == behind[length:]


def test_a_buffer_without_room_stays_as_it_was(rng):
    layout = LAYOUTS["HSTU, float16"]
    arrays = user(layout, 3, rng)
    data = encode(layout, cut(layout, arrays, 0, 2))
    buffer = bytearray(data + bytes(layout.events.row_bytes - 1))
    before = bytes(buffer)
    words = rf"takes {len(before) + 1} bytes, the buffer has {len(before)}$"
    with pytest.raises(RecordError, match=words):
        append_into(layout, memoryview(buffer), cut(layout, arrays, 2, 3))
    assert buffer == before
    buffer.append(0)
    append_into(layout, memoryview(buffer), cut(layout, arrays, 2, 3))
    assert buffer == encode(layout, arrays)


@pytest.mark.parametrize("most", [3, 6, 9])
def test_a_buffer_that_can_not_be_resized_stays_as_it_was(most: int, rng):
    layout = LAYOUTS["two ids, float16"]
    before = encode(layout, user(layout, 6, rng))
    buffer = bytearray(before)
    with memoryview(buffer), pytest.raises(BufferError):
        append_into(layout, buffer, user(layout, 2, rng), max_events=most)
    assert buffer == before


def test_a_record_counts_its_events_in_four_bytes():
    with pytest.raises(RecordError, match="at most 4294967295 events, got 4294967296"):
        Header(2**32, 0, 0, 0)
    assert Header(2**32 - 1, 0, 0, 0).pack(LAYOUTS["two ids, float16"])


@every_layout
def test_a_refused_append_changes_nothing(layout, rng):
    buffer = bytearray(encode(layout, user(layout, 6, rng)))
    before, arrays = bytes(buffer), user(layout, 2, rng)
    name = layout.fields[0].name
    with pytest.raises(RecordError, match=name):
        append_into(layout, buffer, {n: a for n, a in arrays.items() if n != name})
    with pytest.raises(RecordError, match="max_events must be at least 0, got -1"):
        append_into(layout, buffer, arrays, max_events=-1)
    assert buffer == before


def test_the_window_may_begin_later_than_the_history(rng):
    layout = LAYOUTS["two ids, float16"]
    arrays = user(layout, 9, rng)
    short = dict(arrays)
    for field in layout.window.fields:
        short[field.name] = arrays[field.name][:, 5:]
    assert encode(layout, short) == encode(layout, arrays)
    for field in layout.window.fields:
        short[field.name] = arrays[field.name][:, 6:]
    with pytest.raises(RecordError, match="needs cache entries of the last 4 events, got 3"):
        encode(layout, short)


def test_entries_stand_before_the_history_in_a_row_of_hstu():
    assert LAYOUTS["HSTU with time, float16"].describe().splitlines() == [
        "window 0",
        "events cache_k_index uint16 2",
        "events cache_v_index uint16 2",
        "events cache_k_user float16 2x2",
        "events cache_v_user float16 2x3",
        "events history_time int32 1",
    ]


def test_published_setting_takes_12_bytes_an_event():
    layout = RecordLayout.of(manifest(pools=(10000, 10000), users=(2, 2), window=50))
    assert layout.window.row_bytes == 12
    assert layout.cap == 49
    assert layout.describe().startswith("window 49\n")

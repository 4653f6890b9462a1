"""One user's tensors to a record and back."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckv_export.cache.record.header import HEADER_BYTES, Header, read_header
from ckv_export.cache.record.layout import Field, RecordLayout, Section
from ckv_export.cache.record.quantise import load, store
from ckv_export.errors import RecordError, nearest

Array = NDArray[np.generic]
Rows = NDArray[np.void]
Buffer = bytes | bytearray | memoryview


def empty(layout: RecordLayout) -> bytes:
    """The record of a user without events."""
    return Header(0, 0, 0, 0).pack(layout)


def encode(layout: RecordLayout, arrays: Mapping[str, Array]) -> bytes:
    """Write one user's tensors, no batch axis, as a record.

    `arrays`: the fields of `layout`, such as ``cache_k_index`` [L, n], ``cache_k_user`` [L, n, d_u]
    and ``history_<f>`` [m, ..], real events only, oldest first. All have the same number of events;
    of a model with a window, the cache tensors may begin later, with the oldest event that the
    window still holds. Raises `RecordError` for anything missing, unknown, or of a shape, dtype or
    range that doesn't fit.
    """
    window, events = pack_events(layout, arrays)
    window_bytes, events_bytes = window.tobytes(), events.tobytes()
    checksums = zlib.crc32(window_bytes), zlib.crc32(events_bytes)
    header = Header(len(events), len(window), *checksums)
    return b"".join((header.pack(layout), window_bytes, events_bytes))


def decode(layout: RecordLayout, data: Buffer) -> dict[str, Array]:
    """Read a record: every field of `layout` at the graph's dtype, no batch axis.

    Raises `RecordError` for a record that is damaged in any way or of another model or layout.
    """
    parts = open_record(layout, data)
    return {
        field.name: np.ascontiguousarray(np.moveaxis(load(field, rows), 0, field.axis))
        for section, rows in ((layout.window, parts.window), (layout.events, parts.events))
        for field in section.fields
    }


def count(layout: RecordLayout, data: Buffer) -> int:
    """Events in a record. Checks the header and the length, not the rows; `RecordError`."""
    return _whole(layout, memoryview(data).cast("B")).events


def size(layout: RecordLayout, data: Buffer) -> int:
    """Bytes of the record at the start of `data`, which may go on behind it; `RecordError`."""
    return read_header(layout, memoryview(data).cast("B")).record_bytes(layout)


@dataclass(frozen=True)
class Opened:
    """A record whose header and checksums are right: its rows, views of its bytes."""

    header: Header
    window: Rows
    events: Rows


def open_record(layout: RecordLayout, data: Buffer) -> Opened:
    """Check everything of a record but the values in its rows; raises `RecordError`."""
    view = memoryview(data).cast("B")
    header = _whole(layout, view)
    middle = HEADER_BYTES + header.window_bytes(layout)
    window, events = view[HEADER_BYTES:middle], view[middle:]
    for name, part, stored in (
        ("window", window, header.window_checksum),
        ("events", events, header.events_checksum),
    ):
        if zlib.crc32(part) != stored:
            raise RecordError(f"the record's {name} section is damaged: its checksum differs")
    return Opened(header, _rows(layout.window, window), _rows(layout.events, events))


def _whole(layout: RecordLayout, view: memoryview) -> Header:
    header = read_header(layout, view)
    wanted = header.record_bytes(layout)
    if len(view) != wanted:
        what = "truncated" if len(view) < wanted else "followed by other bytes"
        raise RecordError(
            f"the record is {what}: {header.events} events take {wanted} bytes, got {len(view)}"
        )
    return header


def _rows(section: Section, part: memoryview) -> Rows:
    if not section.row_bytes:
        return np.zeros(0, section.row)
    return np.frombuffer(part, section.row)


def pack_events(layout: RecordLayout, arrays: Mapping[str, Array]) -> tuple[Rows, Rows]:
    """Rows of one user's tensors: the last ones of the window, and all events."""
    _check_names(layout, arrays)
    events = _packed(layout.events, arrays, None)
    return _packed(layout.window, arrays, layout.window_rows(len(events))), events


def _check_names(layout: RecordLayout, arrays: Mapping[str, Array]) -> None:
    names = [field.name for field in layout.fields]
    for name in names:
        if name not in arrays:
            raise RecordError(f"a record needs {name!r}, which is missing{nearest(name, arrays)}")
    for name in arrays:
        if name not in names:
            raise RecordError(f"a record of this model has no {name!r}{nearest(name, names)}")


def _packed(section: Section, arrays: Mapping[str, Array], last: int | None) -> Rows:
    """Rows of all events, or of the `last`, of which there must be as many."""
    if not section.fields:
        return np.zeros(0, section.row)
    given = {field.name: _by_event(field, arrays[field.name]) for field in section.fields}
    lengths = {name: len(values) for name, values in given.items()}
    if len(set(lengths.values())) > 1:
        raise RecordError(f"the fields of a record must have as many events each, got {lengths}")
    events = next(iter(lengths.values()))
    if last is not None and events < last:
        raise RecordError(f"the window needs cache entries of the last {last} events, got {events}")
    start = 0 if last is None else events - last
    rows = np.zeros(events - start, section.row)
    for field in section.fields:
        store(field, given[field.name][start:], rows)
    return rows


def _by_event(field: Field, array: Array) -> Array:
    """`array` with its events first, [n, *field.shape]."""
    array = np.asarray(array)
    fits = array.ndim == len(field.shape) + 1
    if not fits or field.tensor_shape(array.shape[field.axis]) != array.shape:
        wanted = ", ".join(map(str, (*field.shape[: field.axis], "n", *field.shape[field.axis :])))
        raise RecordError(f"{field.name!r} must have shape [{wanted}], got {list(array.shape)}")
    if array.dtype.kind not in ("iu" if field.dtype == "int32" else "f"):
        raise RecordError(f"{field.name!r} must be {field.dtype}, got {array.dtype}")
    return np.moveaxis(array, field.axis, 0)

"""New events at the end of a record, and old ones off its front, without rewriting the rest."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from ckv_export.cache.record.codec import Array, Buffer, Rows, open_record, pack_events, size
from ckv_export.cache.record.header import HEADER_BYTES, Header
from ckv_export.cache.record.layout import RecordLayout
from ckv_export.errors import RecordError


def append(
    layout: RecordLayout,
    data: Buffer,
    arrays: Mapping[str, Array],
    *,
    max_events: int | None = None,
) -> bytes:
    """A record with one user's new events behind those of `data`; see `append_into`."""
    grown = bytearray(data)
    append_into(layout, grown, arrays, max_events=max_events)
    return bytes(grown)


def append_into(
    layout: RecordLayout,
    buffer: bytearray | memoryview,
    arrays: Mapping[str, Array],
    *,
    max_events: int | None = None,
) -> int:
    """Append to the record at the start of `buffer`; returns the record's new size in bytes.

    `arrays`: as for `encode`, of the new events alone. `max_events`: the oldest events beyond that
    many are dropped. A bytearray is resized to the record, which must fill it (`BufferError` while
    something else holds a view of it); a memoryview must have room (`RecordError` otherwise) and
    may have more.

    The result is byte for byte what `encode` makes of all the events. Everything is checked before
    the first byte changes; raises `RecordError`. Without dropping, what is written is the header,
    the window and the new rows: the checksum of the events extends.
    """
    if max_events is not None and max_events < 0:
        raise RecordError(f"max_events must be at least 0, got {max_events}")
    view = memoryview(buffer).cast("B")
    old = view if isinstance(buffer, bytearray) else view[: size(layout, view)]
    header = open_record(layout, old).header
    window, events = pack_events(layout, arrays)
    change = _Change.of(layout, header, len(events), max_events)
    if isinstance(buffer, bytearray):
        old.release()
        view.release()
        # At least one byte: a buffer that can't be resized says so before it changes.
        buffer.extend(bytes(max(change.size(layout) - len(buffer), 1)))
        with memoryview(buffer) as grown:
            change.apply(layout, grown, window, events)
        del buffer[change.size(layout) :]
    else:
        if len(view) < change.size(layout):
            raise RecordError(
                f"the grown record takes {change.size(layout)} bytes, the buffer has {len(view)}"
            )
        change.apply(layout, view, window, events)
    return change.size(layout)


@dataclass(frozen=True)
class _Change:
    """From one header to another: how many old and new rows of each section stay."""

    header: Header
    events: int
    window: int
    new_events: int
    new_window: int

    @classmethod
    def of(
        cls, layout: RecordLayout, header: Header, added: int, max_events: int | None
    ) -> _Change:
        events = header.events + added
        events = events if max_events is None else min(events, max_events)
        window = layout.window_rows(events)
        return cls(header, events, window, min(added, events), min(added, window))

    def size(self, layout: RecordLayout) -> int:
        return Header(self.events, self.window, 0, 0).record_bytes(layout)

    def apply(self, layout: RecordLayout, view: memoryview, window: Rows, events: Rows) -> None:
        """Move what stays, write what is new, then the header."""
        # The window first: events may go to where its old rows stand, never the other way round.
        for source, target, length in (self._move_window(layout), self._move_events(layout)):
            if source != target:
                view[target : target + length] = view[source : source + length]
        end = HEADER_BYTES + self.window * layout.window.row_bytes
        size = self.size(layout)
        new_window = window[len(window) - self.new_window :].tobytes()
        new_events = events[len(events) - self.new_events :].tobytes()
        view[end - len(new_window) : end] = new_window
        view[size - len(new_events) : size] = new_events
        if self.events - self.new_events == self.header.events:
            checksum = zlib.crc32(new_events, self.header.events_checksum)
        else:
            checksum = zlib.crc32(view[end:size])
        window_checksum = zlib.crc32(view[HEADER_BYTES:end])
        header = Header(self.events, self.window, window_checksum, checksum)
        view[:HEADER_BYTES] = header.pack(layout)

    def _move_window(self, layout: RecordLayout) -> tuple[int, int, int]:
        """From where to where how many bytes go."""
        row, kept = layout.window.row_bytes, self.window - self.new_window
        return HEADER_BYTES + (self.header.window_rows - kept) * row, HEADER_BYTES, kept * row

    def _move_events(self, layout: RecordLayout) -> tuple[int, int, int]:
        row, kept = layout.events.row_bytes, self.events - self.new_events
        source = HEADER_BYTES + self.header.window_bytes(layout)
        target = HEADER_BYTES + self.window * layout.window.row_bytes
        return source + (self.header.events - kept) * row, target, kept * row

"""The 64 bytes in front of a record: see RECORD.md."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from ckv_export.cache.record.layout import RecordLayout
from ckv_export.errors import RecordError

MAGIC = b"CKVR"
VERSION = 1
HEADER_BYTES = 64
MOST_EVENTS = 2**32 - 1
_BODY = struct.Struct("<4sHH16sI4B7I")
_CHECKSUM = struct.Struct("<I")
_OR_NAME_IDS = ", or export with that one's --item-ids if item ids mean the same in both"


@dataclass(frozen=True)
class Header:
    """Events, rows of the window, and the checksums of both sections; raises `RecordError`."""

    events: int
    window_rows: int
    window_checksum: int
    events_checksum: int

    def __post_init__(self) -> None:
        if self.events > MOST_EVENTS:
            raise RecordError(f"a record holds at most {MOST_EVENTS} events, got {self.events}")

    def pack(self, layout: RecordLayout) -> bytes:
        """The header's bytes in a record of `layout`."""
        body = _BODY.pack(
            MAGIC,
            VERSION,
            HEADER_BYTES,
            layout.fingerprint,
            layout.checksum,
            *layout.codes,
            0,
            self.events,
            self.window_rows,
            layout.events.row_bytes,
            layout.window.row_bytes,
            self.window_checksum,
            self.events_checksum,
            0,
        )
        return body + _CHECKSUM.pack(zlib.crc32(body))

    def window_bytes(self, layout: RecordLayout) -> int:
        """Size of the window section."""
        return self.window_rows * layout.window.row_bytes

    def record_bytes(self, layout: RecordLayout) -> int:
        """Size of the whole record."""
        return HEADER_BYTES + self.window_bytes(layout) + self.events * layout.events.row_bytes


def read_header(layout: RecordLayout, data: memoryview) -> Header:
    """Read and check the header at the start of `data`; raises `RecordError`.

    In this order: length, magic, version, checksum, model, layout, dtypes, counts.
    """
    if len(data) < HEADER_BYTES:
        raise RecordError(
            f"the record is truncated: a header is {HEADER_BYTES} bytes, got {len(data)}"
        )
    body, stored = data[: _BODY.size], _CHECKSUM.unpack_from(data, _BODY.size)[0]
    magic, version, *_ = values = _BODY.unpack(body)
    if magic != MAGIC:
        raise RecordError(f"this is no cache record: it starts with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise RecordError(
            f"the record has format version {version}, this library reads {VERSION}: prefill the "
            "user again"
        )
    if zlib.crc32(body) != stored:
        raise RecordError("the record's header is damaged: its checksum differs")
    header = Header(values[9], values[10], values[13], values[14])
    _check_origin(layout, header, body, values[3], values[4])
    return header


def _check_origin(
    layout: RecordLayout, header: Header, body: memoryview, fingerprint: bytes, checksum: int
) -> None:
    if fingerprint != layout.fingerprint:
        only_ids = layout.user_dtype is None
        raise RecordError(
            f"the record is of model {fingerprint.hex()}, this is {layout.fingerprint.hex()}: "
            f"prefill the user again{_OR_NAME_IDS if only_ids else ''}"
        )
    if checksum != layout.checksum:
        raise RecordError(
            "the record has another layout (form of events, dtype of user parts, or graph) than "
            f"this server's, which is {layout.describe().strip().replace(chr(10), '; ')}"
        )
    if header.window_rows != layout.window_rows(header.events):
        raise RecordError(
            f"the record contradicts itself: {header.window_rows} window rows for "
            f"{header.events} events, must be {layout.window_rows(header.events)}"
        )
    if header.pack(layout)[: _BODY.size] != body:
        raise RecordError("the record contradicts its layout: dtype codes, row or header size")

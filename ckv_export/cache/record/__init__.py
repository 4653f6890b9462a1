"""What a server keeps of one user between requests, as bytes: see RECORD.md beside this file."""

from ckv_export.cache.record.append import append, append_into
from ckv_export.cache.record.batch import batch, past
from ckv_export.cache.record.codec import count, decode, empty, encode, size
from ckv_export.cache.record.graphs import user_events
from ckv_export.cache.record.header import HEADER_BYTES, VERSION
from ckv_export.cache.record.layout import USER_DTYPES, Field, RecordLayout, Section, kept_events

__all__ = [
    "HEADER_BYTES",
    "USER_DTYPES",
    "VERSION",
    "Field",
    "RecordLayout",
    "Section",
    "append",
    "append_into",
    "batch",
    "count",
    "decode",
    "empty",
    "encode",
    "kept_events",
    "past",
    "size",
    "user_events",
]

"""What a record of a bundle's users holds: derived from the inputs of its decode graph."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ckv_export.contract import ModelSpec, TensorSpec
from ckv_export.errors import InputError, RecordError, nearest
from ckv_export.manifest import Manifest

USER_DTYPES = ("float32", "float16", "int8")
"""How user parts may be stored."""

_SHORT = {"fp32": "float32", "fp16": "float16"}  # as the cache report calls them
SCALE_DTYPE = "float16"
SCALE_SUFFIX = "_scale"
UINT16_ROWS = 65536
DTYPE_CODES = {"uint16": 1, "int32": 2, "float32": 3, "float16": 4, "int8": 5}


@dataclass(frozen=True)
class Field:
    """One tensor of a record.

    `name`: the decode graph's, without its batch axis. `dtype`: the graph's; `stored`: the
    record's. `shape`: of one event: [L], [L, width], or a feature's own axes. `axis`: where the
    tensor has its events: [L, n, width], but [n, ..] for a feature. `rows`: ids and row numbers lie
    in [0, rows); None where any number will do. `padding`: what stands in a batch for an event that
    is none, of that shape in a row; () for zeros.
    """

    name: str
    dtype: str
    stored: str
    shape: tuple[int, ...]
    axis: int
    rows: int | None
    padding: tuple[float, ...] = ()

    @property
    def scale(self) -> str | None:
        """Name under which an int8 field's scales are stored."""
        return self.name + SCALE_SUFFIX if self.stored == "int8" else None

    def tensor_shape(self, *batch_and_events: int) -> tuple[int, ...]:
        """Shape for some users (optional) and a number of events."""
        *batch, events = batch_and_events
        return (*batch, *self.shape[: self.axis], events, *self.shape[self.axis :])


@dataclass(frozen=True)
class Section:
    """Rows of one size, an event each, oldest first."""

    fields: tuple[Field, ...]

    @cached_property
    def row(self) -> np.dtype[np.void]:
        """One row, packed, little-endian; an int8 field's scales stand before it."""
        members = []
        for field in self.fields:
            if math.prod(field.shape) == 0:
                continue
            if field.scale is not None:
                members.append((field.scale, _little(SCALE_DTYPE), field.shape[:-1]))
            members.append((field.name, _little(field.stored), field.shape))
        return np.dtype(members)

    @property
    def row_bytes(self) -> int:
        """Bytes of an event."""
        return self.row.itemsize


def _little(dtype: str) -> np.dtype[np.generic]:
    return np.dtype(dtype).newbyteorder("<")


@dataclass(frozen=True)
class RecordLayout:
    """What a record holds of an event, and where.

    `fingerprint`: of what entries depend on; a model with other pools alone can read the records.
    Of ids alone: of the name that was given to their meaning, where the bundle has one.
    `window`: fields kept of the last `cap` events, for a model with a window; `events`: fields
    kept of every event. `user_dtype`: how user parts are stored, None where there are none.
    `pad_to`: events to which a batch is padded unless told otherwise; None where padding never
    moves a score, so that the longest history decides.
    """

    fingerprint: bytes
    user_dtype: str | None
    cap: int
    window: Section
    events: Section
    pad_to: int | None

    @classmethod
    def of(
        cls, manifest: Manifest, user_dtype: str = "float16", *, graph: str | None = None
    ) -> RecordLayout:
        """Layout for the users of a bundle, who will be scored by `graph`.

        `user_dtype`: one of `USER_DTYPES`. `graph`: "decode" or "decode_items", whose users are
        only ids; None takes the second where the bundle has it. Raises `RecordError`.
        """
        graph = graph or ("decode_items" if manifest.item_table else "decode")
        _check_choices(manifest, graph, user_dtype := _SHORT.get(user_dtype, user_dtype))
        spec = manifest.model
        inputs = manifest.graph(graph).inputs
        entries = tuple(_entry(t, manifest, user_dtype) for t in _named(inputs, "cache_"))
        history = tuple(_feature(t, spec) for t in _named(inputs, "history_"))
        windowed = spec.window is not None
        cap = 0 if spec.window is None or not entries else spec.window - 1
        return cls(
            fingerprint=_short(
                manifest.entries_fingerprint if entries else manifest.ids_fingerprint
            ),
            user_dtype=user_dtype if entries else None,
            cap=cap,
            window=Section(entries if windowed else ()),
            events=Section(history if windowed else (*entries, *history)),
            pad_to=min(spec.max_len, manifest.profile.axes["S"].max) if windowed else None,
        )

    @property
    def fields(self) -> tuple[Field, ...]:
        """All fields: the window's, then those of every event."""
        return (*self.window.fields, *self.events.fields)

    @cached_property
    def codes(self) -> tuple[int, int, int]:
        """Dtype codes of K's and V's row numbers and of the user parts; 0 for what is not there."""
        stored = {f.name: f.stored for f in self.fields}
        names = [stored.get("cache_k_index"), stored.get("cache_v_index"), self.user_dtype]
        k, v, user = (0 if name is None else DTYPE_CODES[name] for name in names)
        return k, v, user

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of `describe`: records of another layout have another."""
        return zlib.crc32(self.describe().encode())

    def describe(self) -> str:
        """A line for the window's size and one for each field, in order."""
        lines = [f"window {self.cap}"]
        for name, section in (("window", self.window), ("events", self.events)):
            for f in section.fields:
                lines.append(f"{name} {f.name} {f.stored} {'x'.join(map(str, f.shape)) or '1'}")
        return "".join(line + "\n" for line in lines)

    def window_rows(self, events: int) -> int:
        """Rows of the window section in a record of that many events."""
        return min(events, self.cap)


def kept_events(layout: RecordLayout, manifest: Manifest, asked: int | None = None) -> int:
    """How many events of a user a server keeps: `asked`, or as many as a score can depend on.

    Raises `InputError` for more than that.
    """
    longest = layout.pad_to or manifest.profile.axes["S"].max
    if asked is not None and asked > longest:
        raise InputError(
            f"--max-events is at most {longest} for {manifest.name}, whose scores depend on no "
            f"more events of a user, got {asked}: leave it out"
        )
    return asked or longest


def _short(fingerprint: str) -> bytes:
    """The first 16 bytes of a SHA-256 in hex."""
    try:
        digest = bytes.fromhex(fingerprint)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise RecordError(
            f"a model's fingerprint must be a SHA-256 of 64 hex digits, got {fingerprint!r}"
        )
    return digest[:16]


def _check_choices(manifest: Manifest, graph: str, user_dtype: str) -> None:
    graphs = [name for name in manifest.graph_names if name.startswith("decode")]
    if graph not in graphs:
        raise RecordError(f"records are for one of {', '.join(graphs)}, got {graph!r}")
    if user_dtype not in USER_DTYPES:
        raise RecordError(
            f"user parts are stored as one of {', '.join(USER_DTYPES)}, got {user_dtype!r}"
            f"{nearest(user_dtype, USER_DTYPES)}"
        )


def _named(tensors: Iterable[TensorSpec], prefix: str) -> Iterator[TensorSpec]:
    return (t for t in tensors if t.name.startswith(prefix) and t.name != "history_mask")


def _entry(tensor: TensorSpec, manifest: Manifest, user_dtype: str) -> Field:
    """Of a tensor [B, L, K] or [B, L, K, width]."""
    _, layers, _, *width = tensor.axes
    shape = tuple(int(a) for a in (layers, *width))
    padding = tuple(manifest.padding.get(tensor.name, ()))
    if tensor.dtype != "int32":
        return Field(tensor.name, tensor.dtype, user_dtype, shape, 1, None, padding)
    rows = manifest.model.attention.pool_rows(tensor.name.removeprefix("cache_")[0])
    stored = "uint16" if rows <= UINT16_ROWS else "int32"
    return Field(tensor.name, tensor.dtype, stored, shape, 1, rows, padding)


def _feature(tensor: TensorSpec, spec: ModelSpec) -> Field:
    """Of a tensor [B, S, ..]; stored as it is."""
    shape = tuple(int(a) for a in tensor.axes[2:])
    name = tensor.name.removeprefix("history_")
    rows = next((f.vocab_size for f in spec.item_features if f.name == name and f.has_table), None)
    return Field(tensor.name, tensor.dtype, tensor.dtype, shape, 0, rows)

"""Bundles of every shape a record can have, users for them, and a slow writer of records.

The writer follows RECORD.md number by number, with nothing of the package.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckv_export.cache.record import Field, RecordLayout
from ckv_export.contract import AttentionSpec, DnnSpec, EventForm, FeatureSpec, ModelSpec, Profile
from ckv_export.manifest import ItemTable, Manifest

Arrays = dict[str, NDArray[Any]]

ITEM = FeatureSpec("item_id", "item", "categorical", 6, vocab_size=70000)
CATEGORY = FeatureSpec("cate_id", "item", "categorical", 4, vocab_size=5)
TAGS = FeatureSpec("tags", "item", "sequence", 4, vocab_size=9, length=3)
PRICE = FeatureSpec("price", "item", "numeric", 3)
IMAGE = FeatureSpec("image", "item", "vector", 4, length=5, projected=True)
AGE = FeatureSpec("age", "user", "categorical", 2, vocab_size=9)
TIME = FeatureSpec("time", "item", "timestamp", 0)
RICH = (ITEM, TAGS, AGE, PRICE, IMAGE)

PADDING = {"cache_v_index": [65535], "cache_v_user": [0.1, 0.0, -3.0]}
"""What a router and a projection with a bias make of an event of zeros."""
BOTH = {"d": 16, "num_heads": 4, "user_k": 2, "user_v": 3}


def manifest(
    *features: FeatureSpec,
    window: int | None = 5,
    layers: int = 1,
    form: EventForm | None = None,
    items: bool = False,
    fingerprint: str = "ab" * 32,
    pools: tuple[int, int] = (10, 65536),
    users: tuple[int, int] = (2, 3),
    max_len: int = 20,
    padding: Mapping[str, Sequence[float]] | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> Manifest:
    """A bundle's manifest, without files; `items`: with an item table."""
    spec = ModelSpec(
        kind="sim" if window else "hstu",
        features=features or (ITEM, CATEGORY),
        attention=AttentionSpec(16, 4, *users, *pools),
        dnn=DnnSpec((), (), True),
        max_len=max_len,
        window=window,
        num_layers=layers,
    )
    return Manifest(
        name="toy",
        fingerprint=fingerprint,
        model=spec,
        form=form or EventForm(),
        item_table=ItemTable(ITEM.vocab_size, 8, "float32") if items else None,
        profile=Profile.default(spec),
        source={},
        versions={},
        operators={},
        notes=(),
        timings={},
        parity=None,
        padding=padding or {},
        fingerprints=fingerprints or {},
    )


MANIFESTS = {
    "two ids": manifest(),
    "padding of its own": manifest(padding=PADDING),
    "every kind of feature": manifest(*RICH, window=2),
    "external embeddings": manifest(*RICH, form=EventForm("external")),
    "one id of many features": manifest(*RICH, form=EventForm(item_key="item_id")),
    "item table": manifest(
        *RICH,
        form=EventForm(item_key="item_id"),
        items=True,
        fingerprints={"entries": "cd" * 32, "ids": "ab" * 32},
    ),
    "K without a pool": manifest(pools=(0, 3), users=(16, 1)),
    "V without a pool, wide rows": manifest(pools=(65537, 0), users=(4, 16)),
    "no user parts": manifest(users=(0, 0)),
    "HSTU": manifest(window=None, layers=3),
    "HSTU with time": manifest(ITEM, TIME, window=None, layers=2),
    "HSTU with time, external": manifest(
        ITEM, TIME, window=None, layers=2, form=EventForm("external")
    ),
}
LAYOUTS = {
    f"{name}, {dtype}": RecordLayout.of(m, dtype)
    for name, m in MANIFESTS.items()
    for dtype in ("float32", "float16", "int8")
}


def user(layout: RecordLayout, events: int, rng: np.random.Generator) -> Arrays:
    """A user's tensors, all events in every field, numbers as awkward as they may be."""
    return {f.name: _values(f, f.tensor_shape(events), rng) for f in layout.fields}


def _values(field: Field, shape: Sequence[int], rng: np.random.Generator) -> NDArray[Any]:
    if field.dtype == "int32":
        low, end = (-(2**31), 2**31) if field.rows is None else (0, field.rows)
        drawn = rng.integers(low, end, shape)
        ends = rng.choice([low, end - 1], shape)
        return np.where(rng.random(shape) < 0.1, ends, drawn).astype(np.int32)
    scale = np.float32(10.0) ** rng.integers(-9, 4, shape[:-1] + (1,)[: len(shape)])
    values = (rng.standard_normal(shape) * scale).astype(np.float32)
    values[rng.random(shape) < 0.05] = 0.0
    return values


def cut(layout: RecordLayout, arrays: Mapping[str, NDArray[Any]], start: int, end: int) -> Arrays:
    """Events `start` to `end` of all fields."""
    return {
        f.name: np.take(arrays[f.name], np.arange(start, end), axis=f.axis) for f in layout.fields
    }


def slow_encode(layout: RecordLayout, arrays: Mapping[str, NDArray[Any]], events: int) -> bytes:
    """The record of one user, number by number."""
    kept = min(events, layout.cap)
    window = b"".join(
        _slow_row(layout.window.fields, arrays, e) for e in range(events - kept, events)
    )
    rows = b"".join(_slow_row(layout.events.fields, arrays, e) for e in range(events))
    codes = {"uint16": 1, "int32": 2, "float32": 3, "float16": 4, "int8": 5}
    stored = {f.name: codes[f.stored] for f in layout.fields}
    header = b"CKVR" + struct.pack("<HH", 1, 64) + layout.fingerprint
    header += struct.pack("<I", zlib.crc32(layout.describe().encode()))
    header += bytes([stored.get("cache_k_index", 0), stored.get("cache_v_index", 0)])
    header += bytes([codes.get(layout.user_dtype or "", 0), 0])
    header += struct.pack("<II", events, kept)
    header += struct.pack("<I", len(_slow_row(layout.events.fields, None, 0)))
    header += struct.pack("<I", len(_slow_row(layout.window.fields, None, 0)))
    header += struct.pack("<III", zlib.crc32(window), zlib.crc32(rows), 0)
    return header + struct.pack("<I", zlib.crc32(header)) + window + rows


def _slow_row(
    fields: Sequence[Field], arrays: Mapping[str, NDArray[Any]] | None, event: int
) -> bytes:
    """An event; None of `arrays`: one of zeros."""
    out = b""
    for f in fields:
        values = np.zeros(f.shape, f.dtype) if arrays is None else arrays[f.name]
        if arrays is not None:
            values = values[:, event] if f.axis else values[event]
        if f.stored == "int8":
            out += _slow_int8(values)
        else:
            letter = {"uint16": "H", "int32": "i", "float32": "f", "float16": "e"}[f.stored]
            out += b"".join(struct.pack("<" + letter, v) for v in values.ravel().tolist())
    return out


def _slow_int8(vectors: NDArray[Any]) -> bytes:
    if vectors.shape[-1] == 0:
        return b""
    scales, numbers = b"", b""
    for vector in vectors:
        scale = smallest_half(max(abs(v) for v in vector) / np.float32(127))
        scales += struct.pack("<e", scale)
        for v in vector:
            whole = round(float(v / np.float32(scale))) if scale else 0
            numbers += struct.pack("<b", whole)
    return scales + numbers


def smallest_half(value: float) -> float:
    """The smallest float16 that is not below `value` >= 0, found by walking."""
    bits = 0
    for step in (2**k for k in range(14, -1, -1)):
        if bits + step <= 0x7C00 and _half(bits + step - 1) < value:
            bits += step
    return _half(bits)


def _half(bits: int) -> float:
    return struct.unpack("<e", struct.pack("<H", bits))[0]

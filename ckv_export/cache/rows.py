"""What a server stores per user, one row per kind of thing, counted from the model alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ckv_export.contract import Axis, EventForm, FeatureSpec, ModelSpec

USER_DTYPES = {"fp32": 4, "fp16": 2, "int8": 1}
SCALE_BYTES = 2
"""int8 user parts carry one fp16 scale per vector: per event, layer and side."""
UINT16_ROWS = 65536


@dataclass(frozen=True)
class SizeRow:
    """One thing stored per user; `bytes_per_event` is that of one layer."""

    what: str
    dtype: str
    bytes_per_event: int
    events: int
    layers: int = 1

    @property
    def bytes_per_user(self) -> int:
        """Over all stored events and layers."""
        return self.bytes_per_event * self.events * self.layers

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self) | {"bytes_per_user": self.bytes_per_user}


def compact_rows(spec: ModelSpec, user_dtype: str, events: int) -> tuple[SizeRow, ...]:
    """Rows of the compact cache over `events`: row numbers, user parts, scales."""
    rows = []
    for side in ("k", "v"):
        if spec.attention.shared(side):
            short = spec.attention.pool_rows(side) <= UINT16_ROWS
            dtype, size = ("uint16", 2) if short else ("int32", 4)
            rows.append(SizeRow(f"{side.upper()} index", dtype, size, events, spec.num_layers))
    for side in ("k", "v"):
        rows += _user_rows(spec, side, user_dtype, events)
    return tuple(rows)


def _user_rows(spec: ModelSpec, side: str, user_dtype: str, events: int) -> list[SizeRow]:
    width, name = spec.attention.user_width(side), side.upper()
    what = f"{name} user part" if spec.attention.shared(side) else f"{name} whole (no pool)"
    size = width * USER_DTYPES[user_dtype]
    rows = [SizeRow(what, user_dtype, size, events, spec.num_layers)]
    if user_dtype == "int8" and width:
        rows.append(SizeRow(f"{name} scale", "fp16", SCALE_BYTES, events, spec.num_layers))
    return rows


def full_rows(spec: ModelSpec, events: int) -> tuple[SizeRow, SizeRow]:
    """K and V uncompressed, 2 d numbers per event and layer: fp16, then fp32."""
    numbers, layers = 2 * spec.attention.d, spec.num_layers
    return (
        SizeRow("K and V, full", "fp16", numbers * 2, events, layers),
        SizeRow("K and V, full", "fp32", numbers * 4, events, layers),
    )


def feature_rows(spec: ModelSpec, form: EventForm, events: int) -> tuple[SizeRow, ...]:
    """The history beside its cache entries, as decode takes it: HSTU's is at most a timestamp."""
    return tuple(
        SizeRow(t.name.replace("_", " ", 1), t.dtype, _bytes(t.axes[2:]), events)
        for t in form.history_tensors(spec, "history", "B", "S")
    )


def _bytes(inner: tuple[Axis, ...]) -> int:
    # int32 ids and float32 numbers alike take 4 bytes.
    return 4 * math.prod(int(axis) for axis in inner)


def item_id(spec: ModelSpec) -> FeatureSpec | None:
    """First categorical item feature: by convention the id that the others follow from."""
    return next((f for f in spec.item_features if f.kind == "categorical"), None)


def id_row(spec: ModelSpec, form: EventForm, events: int) -> SizeRow | None:
    """History of the item id alone; None without an id or a long branch, or where it is all."""
    feature = item_id(spec)
    if feature is None or not spec.has_long_branch or form.item_key is not None:
        return None
    return SizeRow(f"or {feature.name} alone", feature.dtype, _bytes(feature.inner), events)


def pool_bytes(spec: ModelSpec) -> int:
    """fp32 pools of all layers and sides, M rows of d - d_u numbers each."""
    sides = [
        spec.attention.pool_rows(side) * (spec.attention.d - spec.attention.user_width(side))
        for side in ("k", "v")
    ]
    return 4 * sum(sides) * spec.num_layers

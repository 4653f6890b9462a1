"""Numbers as a record stores them, and back.

float32 is exact and float16 rounds to the nearest. int8 has a float16 scale s for each vector (an
event, layer and side): the smallest not below max|x| / 127, computed in float32. A number is
stored as x / s rounded to the nearest, so it comes back within s / 2: 0.4% of the vector's largest
number, plus 6e-8 where that is tiny.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ckv_export.cache.record.layout import SCALE_DTYPE, Field
from ckv_export.errors import RecordError

Array = NDArray[np.generic]
_MOST = np.float32(127)


def store(field: Field, values: Array, rows: NDArray[np.void]) -> None:
    """Write `values` [n, *field.shape] into their place in `rows` [n]; raises `RecordError`."""
    if field.dtype == "int32":
        check_ids(field, values)
        if values.size:
            rows[field.name] = values
        return
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = values.astype(np.float32)
        if not np.isfinite(numbers).all():
            raise RecordError(f"{field.name!r} holds NaN or numbers too large for float32")
        if not numbers.size:
            return
        if field.stored == "int8":
            numbers = _scaled(field, numbers, rows)
        rows[field.name] = numbers
    if field.stored == "float16" and not np.isfinite(rows[field.name]).all():
        raise _too_large(field, numbers, "float16", "float32")


def load(field: Field, rows: NDArray[np.void]) -> Array:
    """Read what `store` wrote: [n, *field.shape] of `field.dtype`; raises `RecordError`."""
    if field.name not in (rows.dtype.names or ()):
        return np.zeros((len(rows), *field.shape), field.dtype)
    stored = rows[field.name]
    if field.dtype == "int32":
        ids: Array = stored.astype(np.int32)
        check_ids(field, ids)
        return ids
    values: NDArray[np.float32] = stored.astype(np.float32)
    if field.scale is not None:
        scales = rows[field.scale].astype(np.float32)
        if np.signbit(scales).any():
            raise RecordError(f"a scale of {field.name!r} is negative")
        # An infinite scale makes infinity or NaN of any number: found below.
        with np.errstate(invalid="ignore"):
            values = values * scales[..., None]
    if not np.isfinite(values).all():
        raise RecordError(f"{field.name!r} of the record holds NaN or infinity")
    return values


def check_ids(field: Field, ids: Array) -> None:
    """Raise `RecordError` unless all ids lie in [0, field.rows) and fit the stored dtype."""
    if not ids.size:
        return
    least, most = int(ids.min()), int(ids.max())
    low, end = (-(2**31), 2**31) if field.rows is None else (0, field.rows)
    if least < low or most >= end:
        got = least if least < low else most
        raise RecordError(f"{field.name!r} must lie in [{low}, {end}), got {got}")


def _scaled(
    field: Field, numbers: NDArray[np.float32], rows: NDArray[np.void]
) -> NDArray[np.float32]:
    """Whole numbers within +-127; writes their scales."""
    exact = np.abs(numbers).max(-1) / _MOST
    scales = exact.astype(SCALE_DTYPE)
    below = scales.astype(np.float32) < exact
    scales = np.where(below, np.nextafter(scales, np.float16(np.inf)), scales)
    if not np.isfinite(scales).all():
        raise _too_large(field, numbers, "int8 with a float16 scale", "float32")
    rows[field.scale] = scales
    divisors = np.where(scales == 0, np.float16(1), scales).astype(np.float32)
    whole: NDArray[np.float32] = np.rint(numbers / divisors[..., None])
    return whole


def _too_large(field: Field, numbers: Array, dtype: str, instead: str) -> RecordError:
    return RecordError(
        f"{field.name!r} holds {np.abs(numbers).max():.6g}, too large for {dtype}: store user "
        f"parts as {instead}"
    )

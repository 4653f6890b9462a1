"""Numbers as a record stores them, and back.

float32 is exact and float16 rounds to the nearest. int8 has a float16 scale s for each vector (an
event, layer and side): the smallest not below max|x| / 127, computed in float32. A number is
stored as x / s rounded to the nearest, so it comes back within s / 2: 0.4% of the vector's largest
number, plus 6e-8 where that is tiny.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ckv_export.cache.record.layout import SCALE_DTYPE, SCALE_SUFFIX, Field
from ckv_export.errors import RecordError

Array = NDArray[np.generic]
_MOST = np.float32(127)
_LONG = 16


def store(field: Field, values: Array, rows: NDArray[np.void]) -> None:
    """Write `values` [n, *field.shape] into their place in `rows` [n]; raises `RecordError`."""
    if field.dtype == "int32":
        check_ids(field, values)
        _put(rows, field.name, values)
        return
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = values.astype(np.float32)
        if not np.isfinite(numbers).all():
            raise RecordError(f"{field.name!r} holds NaN or numbers too large for float32")
        if field.stored == "int8" and numbers.size:
            whole, scales = _scaled(field, numbers)
            _put(rows, field.name + SCALE_SUFFIX, scales)
            _put(rows, field.name, whole)
            return
        stored = numbers.astype(field.stored)
    if field.stored == "float16" and not np.isfinite(stored).all():
        raise _too_large(field, numbers, "float16", "float32")
    _put(rows, field.name, stored)


def load(field: Field, rows: NDArray[np.void]) -> Array:
    """Read what `store` wrote: [n, *field.shape] of `field.dtype`; raises `RecordError`."""
    stored = _get(field, rows)
    if field.dtype == "int32":
        ids: Array = stored.astype(np.int32, copy=False)
        check_ids(field, ids)
        return ids
    values: NDArray[np.float32] = stored.astype(np.float32, copy=False)
    if field.scale is not None and values.size:
        scales = rows[field.scale].astype(np.float32)
        if np.signbit(scales).any():
            raise RecordError(f"a scale of {field.name!r} is negative")
        # An infinite scale makes infinity or NaN of any number: found below.
        with np.errstate(invalid="ignore"):
            _multiply(values, scales)
    if not np.isfinite(values).all():
        raise RecordError(f"{field.name!r} of the record holds NaN or infinity")
    return values


def _multiply(vectors: NDArray[np.float32], scales: NDArray[np.float32]) -> None:
    """vectors [n, .., width] *= scales [n, ..]: short ones by column, for numpy loops in each."""
    if vectors.shape[-1] >= _LONG:
        vectors *= scales[..., None]
        return
    for column in np.moveaxis(vectors, -1, 0):
        column *= scales


def copied(array: Array) -> Array:
    """`array` anew, contiguous."""
    return np.array(cells(array), order="C").view(array.dtype).reshape(array.shape)


def cells(array: Array) -> Array:
    """`array` with its last axis as one item each: a copy then moves an item, not `n` numbers.

    Numpy's loops run along the last axis, which is a few numbers long here, over and over.
    """
    if array.ndim < 2 or array.size == 0 or array.strides[-1] != array.itemsize:
        return array
    whole: Array = array.view(f"V{array.shape[-1] * array.itemsize}")[..., 0]
    return whole


def _put(rows: NDArray[np.void], name: str, values: Array) -> None:
    if not values.size:
        return
    target = rows[name]
    alike = values.dtype == target.dtype and values.strides[-1] == values.itemsize
    if alike and target.ndim > 1:
        cells(target)[...] = cells(values)
    else:
        target[...] = values


def _get(field: Field, rows: NDArray[np.void]) -> Array:
    if field.name not in (rows.dtype.names or ()):
        return np.zeros((len(rows), *field.shape), field.dtype)
    return copied(rows[field.name])


def check_ids(field: Field, ids: Array) -> None:
    """Raise `RecordError` unless all ids lie in [0, field.rows) and fit the stored dtype."""
    if not ids.size:
        return
    least, most = int(ids.min()), int(ids.max())
    low, end = (-(2**31), 2**31) if field.rows is None else (0, field.rows)
    if least < low or most >= end:
        got = least if least < low else most
        raise RecordError(f"{field.name!r} must lie in [{low}, {end}), got {got}")


def _scaled(field: Field, numbers: NDArray[np.float32]) -> tuple[Array, Array]:
    """Whole numbers within +-127, int8, and the scale of each vector, float16."""
    columns = np.abs(np.moveaxis(numbers, -1, 0))
    exact = np.maximum.reduce(columns) / _MOST
    scales = exact.astype(SCALE_DTYPE)
    below = scales.astype(np.float32) < exact
    scales[below] = np.nextafter(scales[below], np.float16(np.inf))
    if not np.isfinite(scales).all():
        raise _too_large(field, numbers, "int8 with a float16 scale", "float32")
    divisors = scales.astype(np.float32)
    divisors[divisors == 0] = 1
    return np.rint(numbers / divisors[..., None]).astype(np.int8), scales


def _too_large(field: Field, numbers: Array, dtype: str, instead: str) -> RecordError:
    return RecordError(
        f"{field.name!r} holds {np.abs(numbers).max():.6g}, too large for {dtype}: store user "
        f"parts as {instead}"
    )

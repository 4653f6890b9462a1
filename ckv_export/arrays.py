"""Arrays that users give in files, brought to the shapes and dtypes the graphs take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ckv_export.contract import FeatureSpec, TensorSpec
from ckv_export.errors import EventsError, MissingDependency, nearest, reason
from ckv_export.runtimes.base import Array, Arrays


def read_arrays(path: Path) -> Arrays:
    """Read an .npz of plain arrays, or the columns of a .parquet file (lists become last axes).

    Raises `EventsError` for any other file.
    """
    readers = {
        ".npz": (_read_npz, "an .npz of plain arrays"),
        ".parquet": (_read_parquet, "a .parquet table"),
    }
    if path.suffix not in readers:
        raise EventsError(f"a file of arrays must be an .npz or .parquet, got {path}")
    read, what = readers[path.suffix]
    try:
        return read(path)
    except MissingDependency:
        raise
    except Exception as error:  # junk in an archive makes its reader raise nearly anything
        raise EventsError(f"{path} can't be read as {what}: {reason(error)}") from error


def _read_npz(path: Path) -> Arrays:
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array, no archive")
    with file:
        return {name: np.asarray(file[name]) for name in file.files}


def _read_parquet(path: Path) -> Arrays:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependency("pyarrow", "reading .parquet files", "parquet") from error
    table = parquet.read_table(path)
    return {name: _column(table[name]) for name in table.column_names}


def _column(column: Any) -> Array:
    """An arrow column with an axis for each level of lists.

    Where a level's lists differ in length, which nobody may ask for, they are its elements.
    """
    from pyarrow import compute

    shape, values = [len(column)], column
    while (length := _common_length(values)) is not None:
        shape.append(length)
        values = compute.list_flatten(values)
    array: Array = values.to_numpy()
    return array.reshape(shape)


def _common_length(values: Any) -> int | None:
    """Of all lists of an arrow column; None for other columns, too."""
    import pyarrow as pa
    from pyarrow import compute

    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if values.null_count or not any(is_kind(values.type) for is_kind in kinds):
        return None
    lengths = compute.unique(compute.list_value_length(values)).to_pylist()
    return lengths[0] if len(lengths) == 1 else None


def take(
    path: Path,
    arrays: Mapping[str, Array],
    tensor: TensorSpec,
    sizes: dict[str, int],
    feature: FeatureSpec | None = None,
) -> Array:
    """The array of `tensor`, checked against its axes and converted to its dtype.

    `sizes` collects the sizes of named axes, which must agree between tensors. Whole numbers of any
    width become int32, numbers float32, a mask of 0 and 1 bool. Ids of `feature` must have a row in
    its table. Raises `EventsError`.
    """
    if tensor.name not in arrays:
        raise EventsError(f"{path} lacks the array {tensor.name!r}{nearest(tensor.name, arrays)}")
    array = arrays[tensor.name]
    _check_shape(path, tensor, array, sizes)
    kinds = {"int32": "iu", "float32": "fiu", "bool": "biuf"}[tensor.dtype]
    if array.dtype.kind not in kinds:
        raise EventsError(
            f"{path}: {tensor.name!r} must be convertible to {tensor.dtype}, got {_kind(array)}"
        )
    if feature is not None:
        _check_ids(path, feature, array)
    return _converted(path, tensor, array)


def _kind(array: Array) -> str:
    """What it holds: the Python type where numpy has none."""
    some = next((value for value in array.flat if value is not None), None)
    return str(array.dtype) if array.dtype != object else type(some).__name__


def _check_shape(path: Path, tensor: TensorSpec, array: Array, sizes: dict[str, int]) -> None:
    fits = array.ndim == len(tensor.axes)
    if fits:
        for axis, size in zip(tensor.axes, array.shape, strict=True):
            wanted = sizes.setdefault(axis, size) if isinstance(axis, str) else axis
            fits = fits and size == wanted
    if not fits:
        shape = ", ".join(
            str(sizes.get(a, a)) if isinstance(a, str) else str(a) for a in tensor.axes
        )
        raise EventsError(
            f"{path}: {tensor.name!r} must have the shape [{shape}], got {list(array.shape)}"
            f"{' of lists that differ in length' if _kind(array) == 'ndarray' else ''}"
        )


def _converted(path: Path, tensor: TensorSpec, array: Array) -> Array:
    """`array` in the tensor's dtype, which must keep what it says."""
    with np.errstate(over="ignore"):
        converted: Array = array.astype(np.dtype(tensor.dtype))
    if tensor.dtype == "float32" and not np.isfinite(converted).all():
        raise EventsError(f"{path}: {tensor.name!r} holds NaN or numbers too large for float32")
    if tensor.dtype != "float32" and not (converted == array).all():
        allowed = "only 0 and 1" if tensor.dtype == "bool" else "numbers that fit into int32"
        raise EventsError(f"{path}: {tensor.name!r} must hold {allowed}")
    return converted


def _check_ids(path: Path, feature: FeatureSpec, ids: Array) -> None:
    """Raise `EventsError` unless all ids of a categorical or sequence feature have a row."""
    if feature.kind not in ("categorical", "sequence") or ids.size == 0:
        return
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= feature.vocab_size:
        raise EventsError(
            f"{path}: ids of feature {feature.name!r} must lie in [0, {feature.vocab_size}), "
            f"got {least if least < 0 else most}"
        )

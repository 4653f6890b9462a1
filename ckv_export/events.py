"""Files of real events: an .npz whose arrays are named as the prefill graph's inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ckv_export.contract import FeatureSpec, ModelSpec, TensorSpec, prefill_io
from ckv_export.errors import EventsError, nearest
from ckv_export.runtimes.base import Array, Arrays


def load_events(path: Path, spec: ModelSpec) -> Arrays:
    """Read ``event_<f>`` [N, S, ...] of each item feature and ``event_mask`` [N, S].

    Whole numbers of any width become int32, numbers float32, a mask of 0 and 1 bool; other arrays
    of the file are ignored. Raises `EventsError` for a file, array, shape, id or number that
    doesn't fit.
    """
    arrays = _read(path)
    features = {f"event_{f.name}": f for f in spec.item_features}
    sizes: dict[str, int] = {}
    events: Arrays = {}
    for tensor in prefill_io(spec).inputs:
        if tensor.name not in arrays:
            raise EventsError(
                f"{path} lacks the array {tensor.name!r}{nearest(tensor.name, arrays)}"
            )
        array = _fitted(path, tensor, arrays[tensor.name], sizes)
        if tensor.name in features:
            _check_ids(path, features[tensor.name], array)
        events[tensor.name] = _converted(path, tensor, array)
    return events


def _read(path: Path) -> Arrays:
    if path.suffix != ".npz":
        raise EventsError(f"a file of events must be an .npz, got {path}")
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array, no archive")
        with file:
            return {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # junk in an archive makes numpy raise nearly anything
        raise EventsError(f"{path} can't be read as an .npz of plain arrays: {error}") from error


def _fitted(path: Path, tensor: TensorSpec, array: Array, sizes: dict[str, int]) -> Array:
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
        )
    kinds = {"int32": "iu", "float32": "fiu", "bool": "biuf"}[tensor.dtype]
    if array.dtype.kind not in kinds:
        raise EventsError(
            f"{path}: {tensor.name!r} must be convertible to {tensor.dtype}, got {array.dtype}"
        )
    return array


def _converted(path: Path, tensor: TensorSpec, array: Array) -> Array:
    """`array` in the tensor's dtype, which must keep what it says."""
    with np.errstate(over="ignore"):
        converted: Array = array.astype(np.dtype(tensor.dtype))
    if tensor.dtype == "float32" and not np.isfinite(converted).all():
        raise EventsError(f"{path}: {tensor.name!r} holds NaN or numbers too large for float32")
    if tensor.dtype == "bool" and not (converted == array).all():
        raise EventsError(f"{path}: {tensor.name!r} must hold only 0 and 1")
    return converted


def _check_ids(path: Path, feature: FeatureSpec, array: Array) -> None:
    if feature.dtype != "int32" or array.size == 0:
        return
    least, most = int(array.min()), int(array.max())
    if least < 0 or most >= feature.vocab_size:
        raise EventsError(
            f"{path}: ids of feature {feature.name!r} must lie in [0, {feature.vocab_size}), "
            f"got {least if least < 0 else most}"
        )

"""Files of real events: an .npz whose arrays are named as the prefill graph's inputs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from ckv_export.contract import FeatureSpec, ModelSpec, TensorSpec, prefill_io
from ckv_export.errors import EventsError, nearest
from ckv_export.runtimes.base import Array, Arrays


def load_events(path: Path, spec: ModelSpec) -> Arrays:
    """Read ``event_<f>`` [N, S, ...] of each item feature and ``event_mask`` [N, S].

    Whole numbers of any width become int32, numbers float32, the mask bool; other arrays of the
    file are ignored. Raises `EventsError` for a file, array, shape or id that doesn't fit.
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
        events[tensor.name] = _fitted(path, tensor, arrays[tensor.name], sizes)
        if tensor.name in features:
            _check_ids(path, features[tensor.name], events[tensor.name])
    return events


def _read(path: Path) -> Arrays:
    if path.suffix != ".npz":
        raise EventsError(f"a file of events must be an .npz, got {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
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
    return array.astype(np.dtype(tensor.dtype))


def _check_ids(path: Path, feature: FeatureSpec, array: Array) -> None:
    if feature.dtype != "int32" or array.size == 0:
        return
    ids = array.astype(np.int64)
    if ids.min() < 0 or ids.max() >= feature.vocab_size:
        worst = int(ids.min() if ids.min() < 0 else ids.max())
        raise EventsError(
            f"{path}: ids of feature {feature.name!r} must lie in [0, {feature.vocab_size}), "
            f"got {worst}"
        )

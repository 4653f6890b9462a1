"""Files of real events: arrays named as the prefill graph's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckv_export.arrays import read_arrays, take
from ckv_export.contract import FEATURES, EventForm, ModelSpec, TensorSpec
from ckv_export.errors import EventsError
from ckv_export.runtimes.base import Array, Arrays

LABEL = TensorSpec("label", "float32", ("B", "C"))
_MASK = TensorSpec("event_mask", "bool", ("B", "S"))


@dataclass(frozen=True)
class Requests:
    """Histories of B users and, where the file has them, what was asked about each.

    `events`: see `event_tensors`; `candidates`: ``candidate_<f>`` [B, C, ...]; `users`:
    ``user_<f>`` [B, ...]; `labels`: float32 [B, C], 1 for a click, else 0.
    """

    events: Arrays
    candidates: Arrays | None
    users: Arrays | None
    labels: Array | None


def event_tensors(spec: ModelSpec, form: EventForm = FEATURES) -> list[TensorSpec]:
    """What a file of events holds: ``event_<f>`` [B, S, ...] and ``event_mask`` [B, S]."""
    return [*form.item_tensors(spec, "event", "B", "S"), _MASK]


def load_events(path: Path, spec: ModelSpec, form: EventForm = FEATURES) -> Arrays:
    """Read the arrays of `event_tensors` from an .npz or .parquet; others are ignored.

    A .parquet may be a file of histories, as bulk prefill takes it: lists as long as each user's,
    oldest event first, which are padded on the left, and all events real where it has no mask.
    Raises `EventsError` for a file, array, shape, id or number that doesn't fit.
    """
    tensors = event_tensors(spec, form)
    return _taken(path, _read(path, tensors), spec, tensors, {})


def load_requests(
    path: Path, spec: ModelSpec, form: EventForm = FEATURES, labels: Path | None = None
) -> Requests:
    """Read events and, all or none of each kind, candidates and user features; and ``label``.

    `labels`: another file that holds ``label``. Raises `EventsError` as `load_events` does.
    """
    tensors, sizes = event_tensors(spec, form), dict[str, int]()
    arrays = _read(path, tensors)
    events = _taken(path, arrays, spec, tensors, sizes)
    groups = (form.item_tensors(spec, "candidate", "B", "C"), form.user_tensors(spec))
    given = [any(t.name in arrays for t in tensors) for tensors in groups]
    candidates, users = (
        _taken(path, arrays, spec, tensors, sizes) if some else None
        for tensors, some in zip(groups, given, strict=True)
    )
    if labels is not None:
        path, arrays = labels, read_arrays(labels)
    found = None
    if labels is not None or (candidates is not None and LABEL.name in arrays):
        if candidates is None:
            raise EventsError(f"{path}: labels are of candidates, and the events file has none")
        found = take(path, arrays, LABEL, sizes)
        if not ((found == 0) | (found == 1)).all():
            raise EventsError(f"{path}: {LABEL.name!r} must hold only 0 and 1")
    return Requests(events, candidates, users, found)


def _taken(
    path: Path,
    arrays: Mapping[str, Array],
    spec: ModelSpec,
    tensors: list[TensorSpec],
    sizes: dict[str, int],
) -> Arrays:
    features = {f.name: f for f in spec.features}
    return {
        t.name: take(path, arrays, t, sizes, features.get(t.name.partition("_")[2]))
        for t in tensors
    }


def _read(path: Path, tensors: list[TensorSpec]) -> Arrays:
    """The file's arrays; the histories of a .parquet have an axis of events and a mask."""
    arrays = read_arrays(path)
    names = [t.name for t in tensors if t.name in arrays and _has_lists(arrays[t.name])]
    if path.suffix != ".parquet" or not names:
        return arrays
    lengths = {name: np.array([len(row) for row in arrays[name]], np.int64) for name in names}
    first, *others = names
    for name in others:
        if not np.array_equal(lengths[name], lengths[first]):
            row = int((lengths[name] != lengths[first]).argmax())
            raise EventsError(
                f"{path}: in row {row}, {name!r} has {lengths[name][row]} events and {first!r} "
                f"{lengths[first][row]}"
            )
    events = int(lengths[first].max(initial=0))
    real = np.arange(events) >= events - lengths[first][:, None]
    padded = {name: _left_padded(path, name, arrays[name], real) for name in names}
    return {_MASK.name: real, **arrays, **padded}


def _has_lists(column: Array) -> bool:
    return column.ndim > 1 or (
        column.dtype == object and all(isinstance(row, np.ndarray) for row in column)
    )


def _left_padded(path: Path, name: str, column: Array, real: Array) -> Array:
    """A column of lists that differ in length as an array [B, S, ..]; another as it is.

    `real`: bool [B, S], which of its places are events.
    """
    if column.dtype != object or not column.size:
        return column
    try:
        flat = np.concatenate(
            [row if row.dtype != object else np.stack(list(row)) for row in column if len(row)]
        )
    except (TypeError, ValueError) as error:
        raise EventsError(
            f"{path}: the lists in {name!r} must be of numbers, or of vectors that are equally long"
        ) from error
    made = np.zeros((*real.shape, *flat.shape[1:]), flat.dtype)
    made[real] = flat
    return made

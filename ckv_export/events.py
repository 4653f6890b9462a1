"""Files of real events: arrays named as the prefill graph's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ckv_export.arrays import read_arrays, take
from ckv_export.contract import FEATURES, EventForm, ModelSpec, TensorSpec
from ckv_export.errors import EventsError
from ckv_export.runtimes.base import Array, Arrays

LABEL = TensorSpec("label", "float32", ("B", "C"))


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
    mask = TensorSpec("event_mask", "bool", ("B", "S"))
    return [*form.item_tensors(spec, "event", "B", "S"), mask]


def load_events(path: Path, spec: ModelSpec, form: EventForm = FEATURES) -> Arrays:
    """Read the arrays of `event_tensors` from an .npz or .parquet; others are ignored.

    Raises `EventsError` for a file, array, shape, id or number that doesn't fit.
    """
    return _taken(path, read_arrays(path), spec, event_tensors(spec, form), {})


def load_requests(
    path: Path, spec: ModelSpec, form: EventForm = FEATURES, labels: Path | None = None
) -> Requests:
    """Read events and, all or none of each kind, candidates and user features; and ``label``.

    `labels`: another file that holds ``label``. Raises `EventsError` as `load_events` does.
    """
    arrays, sizes = read_arrays(path), dict[str, int]()
    events = _taken(path, arrays, spec, event_tensors(spec, form), sizes)
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

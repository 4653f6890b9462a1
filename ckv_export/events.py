"""Files of real events: arrays named as the prefill graph's inputs."""

from __future__ import annotations

from pathlib import Path

from ckv_export.arrays import check_ids, read_arrays, take
from ckv_export.contract import FEATURES, EventForm, ModelSpec, TensorSpec
from ckv_export.runtimes.base import Arrays


def event_tensors(spec: ModelSpec, form: EventForm = FEATURES) -> list[TensorSpec]:
    """What a file of events holds: ``event_<f>`` [B, S, ...] and ``event_mask`` [B, S]."""
    mask = TensorSpec("event_mask", "bool", ("B", "S"))
    return [*form.item_tensors(spec, "event", "B", "S"), mask]


def load_events(path: Path, spec: ModelSpec, form: EventForm = FEATURES) -> Arrays:
    """Read the arrays of `event_tensors` from an .npz or .parquet; others are ignored.

    Raises `EventsError` for a file, array, shape, id or number that doesn't fit.
    """
    arrays = read_arrays(path)
    sizes: dict[str, int] = {}
    events = {t.name: take(path, arrays, t, sizes) for t in event_tensors(spec, form)}
    for feature in spec.item_features:
        if f"event_{feature.name}" in events:
            check_ids(path, feature, events[f"event_{feature.name}"])
    return events

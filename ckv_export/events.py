"""Files of real events: arrays named as the prefill graph's inputs."""

from __future__ import annotations

from pathlib import Path

from ckv_export.arrays import read_arrays, take
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
    features = {f"event_{f.name}": f for f in spec.item_features}
    return {
        t.name: take(path, arrays, t, sizes, features.get(t.name))
        for t in event_tensors(spec, form)
    }

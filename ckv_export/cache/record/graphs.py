"""From the tensors of a graph's call to what goes into one user's record."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ckv_export.cache.record.codec import Array
from ckv_export.cache.record.layout import RecordLayout
from ckv_export.errors import RecordError

_PREFIXES = {"prefill": ("cache", "event"), "decode": ("append", "append")}


def user_events(
    layout: RecordLayout, tensors: Mapping[str, Array], user: int, *, graph: str = "decode"
) -> dict[str, Array]:
    """The real events of one user of a call, as `encode` and `append` take them.

    `tensors`: inputs and outputs of the call together. `graph` "prefill": ``cache_*`` and
    ``event_*`` of all events; "decode": ``append_*`` of the new ones. `user`: position in the
    batch. Events that the mask leaves out are left out. Raises `RecordError` for a missing tensor.
    """
    if graph not in _PREFIXES:
        raise RecordError(f"graph must be one of {', '.join(_PREFIXES)}, got {graph!r}")
    entry, event = _PREFIXES[graph]
    real = np.asarray(_get(tensors, f"{event}_mask")[user], np.bool_)
    arrays = {}
    for field in layout.fields:
        kind, suffix = field.name.split("_", 1)
        array = _get(tensors, f"{entry if kind == 'cache' else event}_{suffix}")[user]
        arrays[field.name] = np.compress(real, array, axis=field.axis)
    return arrays


def _get(tensors: Mapping[str, Array], name: str) -> Array:
    if name not in tensors:
        raise RecordError(f"the tensors of the call lack {name!r}")
    return tensors[name]

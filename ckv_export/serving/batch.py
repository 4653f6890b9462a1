"""Requests of several users as the inputs of one decode call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckv_export.cache.record import RecordLayout, batch
from ckv_export.contract import TensorSpec
from ckv_export.runtimes.base import Array, Arrays
from ckv_export.serving.request import Request

# HSTU's histories are padded to a multiple of this, so that an engine meets few shapes.
_ROUNDED_TO = 32


def history_events(layout: RecordLayout, events: Sequence[int], appended: int, most: int) -> int:
    """S for users with histories of these lengths who append `appended` events in this call.

    With the appended events a history of a target-attention model is always `layout.pad_to` long:
    a score must not depend on who else is in the call, nor on whether an event came with the
    request or before it.
    """
    if layout.pad_to is not None:
        return layout.pad_to - appended
    longest = max(events, default=0)
    return max(longest, min(-(-longest // _ROUNDED_TO) * _ROUNDED_TO, most))


def decode_inputs(
    layout: RecordLayout,
    tensors: Sequence[TensorSpec],
    requests: Sequence[Request],
    records: Sequence[bytes],
    events: int,
    counted: int,
) -> Arrays:
    """All inputs of a call; raises `RecordError` for a bad record.

    `tensors`: inputs of one request (`request_tensors`). `events`: S. `counted`: events of a user
    that HSTU counts at most; the oldest give way to the appended ones here as they will in the
    record. Appended events stand at the end of their axis, in front of them padding that
    ``append_mask`` leaves out; of candidates the padding follows, with scores that mean nothing.
    """
    feeds = batch(layout, records, events)
    for tensor in tensors:
        rows = [request.inputs[tensor.name] for request in requests]
        feeds[tensor.name] = _padded(tensor, rows)
    lengths = np.array([request.appended for request in requests])
    most = int(lengths.max(initial=0))
    feeds["append_mask"] = np.arange(most) >= most - lengths[:, None]
    if layout.pad_to is None:
        kept = np.arange(events) >= events - counted + lengths[:, None]
        feeds["history_mask"] = np.logical_and(feeds["history_mask"], kept)
    return feeds


def _padded(tensor: TensorSpec, rows: Sequence[Array]) -> Array:
    if tensor.name.startswith("user_"):
        return np.stack(rows)
    longest = max(len(row) for row in rows)
    made = np.zeros((len(rows), longest, *rows[0].shape[1:]), tensor.dtype)
    for into, row in zip(made, rows, strict=True):
        if len(row) and tensor.name.startswith("append_"):
            into[-len(row) :] = row
        else:
            into[: len(row)] = row
    return made

"""Records of several users as the inputs of one call of a graph."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ckv_export.cache.record.codec import Array, Buffer, Opened, Rows, open_record
from ckv_export.cache.record.layout import Field, RecordLayout, Section
from ckv_export.cache.record.quantise import cells, copied, load
from ckv_export.errors import RecordError


def batch(
    layout: RecordLayout, records: Sequence[Buffer], events: int | None = None
) -> dict[str, Array]:
    """Inputs of decode from the records of B users: ``cache_*``, ``history_mask``, ``history_*``.

    `events`: S, to which histories are left-padded, with zeros or `Field.padding`; of a longer one
    its last S events are taken. None takes `layout.pad_to`, the length that a target-attention
    model was trained with: its scores depend on S, since padding takes part in a search and in a
    mask rule. For HSTU it is the longest history of the batch. K is min(S, W - 1). Raises
    `RecordError` naming the position of a bad record.
    """
    if events is not None and events < 0:
        raise RecordError(f"a batch has 0 events or more, got {events}")
    opened = [_opened(layout, position, data) for position, data in enumerate(records)]
    longest = max((o.header.events for o in opened), default=0)
    size = layout.pad_to if events is None else events
    size = longest if size is None else size
    mask = _mask([o.header.events for o in opened], size)
    tensors = _padded(layout.window, [o.window for o in opened], layout.window_rows(size))
    tensors["history_mask"] = mask
    return tensors | _padded(layout.events, [o.events for o in opened], size)


def past(
    layout: RecordLayout, records: Sequence[Buffer], events: int | None = None
) -> dict[str, Array]:
    """Inputs of HSTU's prefill from the records of B users: ``past_*``, ``past_mask``.

    With them a history goes on from where its record ends. Raises `RecordError`.
    """
    if layout.cap or layout.user_dtype is None:
        raise RecordError("only a model that caches its whole history takes its past in prefill")
    tensors = batch(layout, records, events)
    return {f"past_{name.split('_', 1)[1]}": tensor for name, tensor in tensors.items()}


def _opened(layout: RecordLayout, position: int, data: Buffer) -> Opened:
    try:
        return open_record(layout, data)
    except RecordError as error:
        raise RecordError(f"record {position} of the batch: {error}") from error


def _mask(lengths: Sequence[int], size: int) -> NDArray[np.bool_]:
    """[B, size], true at the last `lengths` positions."""
    return np.arange(size) >= size - np.array(lengths, np.int64).reshape(-1, 1)


def _padded(section: Section, users: Sequence[Rows], size: int) -> dict[str, Array]:
    """Fields [B, .., size, ..] that end with the last rows of each user."""
    if not section.fields:
        return {}
    taken = [rows[max(len(rows) - size, 0) :] for rows in users]
    # Joined as bytes: numpy would compare the row types of every two users first.
    rows = np.frombuffer(b"".join(rows.view(np.uint8).data for rows in taken), section.row)
    counts = [len(rows) for rows in taken]
    return {f.name: _tensor(f, load(f, rows), counts, size) for f in section.fields}


def _tensor(field: Field, values: Array, counts: Sequence[int], size: int) -> Array:
    """[B, .., size, ..]: padding, then the user's values, so many as `counts` says."""
    if len(values) == len(counts) * size:
        whole = np.moveaxis(values.reshape(len(counts), size, *field.shape), 1, field.axis + 1)
        return whole if whole.flags.c_contiguous else copied(whole)
    tensor = np.empty(field.tensor_shape(len(counts), size), field.dtype)
    padding = np.resize(field.padding or 0, (1, *field.shape)).astype(field.dtype)
    target = np.moveaxis(tensor, field.axis + 1, 1)
    if values.ndim > field.axis + 1:
        target, values, padding = cells(target), cells(values), cells(padding)
    for user, end, count in zip(target, itertools.accumulate(counts), counts, strict=True):
        user[: size - count] = padding
        if count:
            user[size - count :] = values[end - count : end]
    return tensor

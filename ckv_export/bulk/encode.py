"""Histories to records: prefill in batches of users whose histories are about as long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ckv_export.cache.record import RecordLayout, empty, encode, past, user_events
from ckv_export.contract import GraphSpec
from ckv_export.runtimes.base import Arrays

Prefill = Callable[[Arrays], Arrays]

_EVENTS_AT_ONCE = 65536
_ROUNDED_TO = 32


class Encoder:
    """Records of a layout. `prefill` is not called where a record is ids alone.

    `max_batch`: users of one call, of at most 65536 events with their padding, or one alone.
    """

    def __init__(
        self, layout: RecordLayout, io: GraphSpec, prefill: Prefill, max_batch: int
    ) -> None:
        self.layout, self.prefill, self.max_batch = layout, prefill, max_batch
        self._inputs = [t for t in io.inputs if t.name.startswith("event_")]
        self._sees_past = any(t.name.startswith("past_") for t in io.inputs)
        self._entries = any(f.name.startswith("cache_") for f in layout.fields)

    def encode(self, histories: Sequence[Arrays]) -> list[bytes]:
        """A record for each history ``event_<f>`` [n, ..]."""
        lengths = [_events(history) for history in histories]
        records = [b""] * len(histories)
        for positions in self._batches(lengths):
            made = self._encode([histories[p] for p in positions])
            for position, record in zip(positions, made, strict=True):
                records[position] = record
        return records

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Positions of users for each call, the longest last."""
        batch: list[int] = []
        for position in sorted(range(len(lengths)), key=lambda p: lengths[p]):
            users = len(batch) + 1
            events = users * self._padded(lengths[position])
            if batch and (users > self.max_batch or events > _EVENTS_AT_ONCE):
                yield batch
                batch = []
            batch.append(position)
        if batch:
            yield batch

    def _padded(self, events: int) -> int:
        """S of a call whose longest history has so many events; of a window only its own."""
        rounded = -(-events // _ROUNDED_TO) * _ROUNDED_TO
        return min(rounded, self.layout.cap) if self.layout.cap else rounded

    def _encode(self, histories: Sequence[Arrays]) -> list[bytes]:
        whole = [{_history(n): a for n, a in history.items()} for history in histories]
        kept = {field.name for field in self.layout.fields}
        rows = [{n: a for n, a in row.items() if n in kept} for row in whole]
        if self._entries:
            size = self._padded(max(_events(history) for history in histories))
            feeds = self._feeds(histories, size)
            tensors = feeds | self.prefill(feeds)
            entries = (
                user_events(self.layout, tensors, u, graph="prefill") for u in range(len(rows))
            )
            # What stands in a row already is of all events, not of those that prefill has seen.
            rows = [made | row for made, row in zip(entries, rows, strict=True)]
        return [encode(self.layout, row) for row in rows]

    def _feeds(self, histories: Sequence[Arrays], size: int) -> Arrays:
        """Inputs of prefill: the last `size` events of each, left-padded."""
        feeds: Arrays = {}
        lengths = np.array([min(_events(history), size) for history in histories])
        mask = np.arange(size) >= size - lengths[:, None]
        for tensor in self._inputs:
            if tensor.name == "event_mask":
                feeds[tensor.name] = mask
                continue
            made = np.zeros(tensor.shape({"B": len(histories), "S": size}), tensor.dtype)
            for into, history, length in zip(made, histories, lengths, strict=True):
                values = history[tensor.name]
                into[size - length :] = values[len(values) - length :]
            feeds[tensor.name] = made
        if self._sees_past:
            feeds |= past(self.layout, [empty(self.layout)] * len(histories), 0)
        return feeds


def _history(name: str) -> str:
    return f"history_{name.removeprefix('event_')}"


def _events(history: Arrays) -> int:
    return len(next(iter(history.values())))

"""Run the cases through a runtime's graphs as a server would, and keep what came out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckv_export.contract import GraphSpec, ModelSpec
from ckv_export.parity.compare import alike
from ckv_export.parity.expected import ExpectedCase
from ckv_export.runtimes.base import Arrays, Runner


@dataclass(frozen=True)
class CaseRun:
    """What one runtime computed in one case.

    `cache`: all entries that prefill returned; `chunked`: the same with the history in two chunks,
    where entries depend on it; `decoded`: decode's outputs when it is fed the reference's row
    numbers (teacher-forced); `served`: when it is fed its own, None where these are the same, or
    no rows of the pool at all.
    """

    case: ExpectedCase
    cache: Arrays
    chunked: Arrays | None
    decoded: Arrays
    served: Arrays | None

    @property
    def as_served(self) -> Arrays:
        """Decode's outputs as a user would get them, flipped rows and all."""
        return self.decoded if self.served is None else self.served

    @property
    def sound(self) -> bool:
        """Whether all outputs can be compared, or given to another graph."""
        return all_alike(self.case, self.cache) and all_alike(self.case, self.decoded)


def replay(
    spec: ModelSpec, prefill: Runner, decode: Runner, cases: Iterable[ExpectedCase]
) -> list[CaseRun]:
    """Run every case through prefill and decode of one runtime."""
    with prefill, decode:
        return [_replay_one(spec, prefill, decode, case) for case in cases]


def _replay_one(spec: ModelSpec, prefill: Runner, decode: Runner, case: ExpectedCase) -> CaseRun:
    whole, *parts = prefilled(spec, case)
    cache = prefill.infer(prefill_feeds(prefill.io, case, whole))
    sound = all_alike(case, cache)
    chunked = _in_chunks(prefill, case, parts) if sound and parts else None
    forced = forced_entries(spec, case, chunked or cache)
    decoded = decode.infer(decode_feeds(decode.io, case, forced))
    served = None
    if sound:
        own = kept(spec, cache)
        if _flipped(own, forced) and _are_rows(spec, own):
            served = decode.infer(decode_feeds(decode.io, case, own))
    return CaseRun(case, cache, chunked, decoded, served)


def all_alike(case: ExpectedCase, got: Arrays) -> bool:
    """Whether outputs have the shapes and types of the reference's."""
    return all(alike(array, case.outputs[name]) for name, array in got.items())


def _flipped(own: Arrays, forced: Arrays) -> bool:
    return any(not np.array_equal(own[n], forced[n]) for n in own if n.endswith("_index"))


def _are_rows(spec: ModelSpec, cache: Arrays) -> bool:
    """Whether every row number is one of its pool: a runtime may end the process on another."""
    for side in ("k", "v"):
        index = cache.get(f"cache_{side}_index", np.zeros(0, np.int32))
        if index.size and not 0 <= index.min() <= index.max() < spec.attention.pool_rows(side):
            return False
    return True


def kept(spec: ModelSpec, cache: Arrays) -> Arrays:
    """The last K entries, which decode takes, of entries [B, L, S, ...]."""
    events = next(iter(cache.values())).shape[2]
    first = events - spec.cached_events(events)
    return {name: np.ascontiguousarray(a[:, :, first:]) for name, a in cache.items()}


def forced_entries(spec: ModelSpec, case: ExpectedCase, cache: Arrays) -> Arrays:
    """The last K entries of `cache`, with the reference's row numbers.

    So a flip, which is reported by itself, hides nothing else. User parts in layers above a flip
    are the reference's too: they follow from other keys and values.
    """
    forced = {}
    same = comparable(case, cache)
    for name, got in cache.items():
        expected = case.outputs[name]
        if name.endswith("_index") or not alike(got, expected):
            forced[name] = expected
        else:
            forced[name] = np.where(same[..., None], got, expected)
    return kept(spec, forced)


def comparable(case: ExpectedCase, got: Arrays) -> NDArray[np.bool_]:
    """Which entries [B, L, N], cached or appended ones, no flip of a lower layer has touched."""
    flipped = np.zeros(case.outputs[next(iter(got))].shape[:3], bool)
    for name in case.margins:
        if name in got and alike(got[name], case.outputs[name]):
            flipped |= got[name] != case.outputs[name]
    below = np.zeros_like(flipped)
    below[:, 1:] = np.maximum.accumulate(np.maximum.accumulate(flipped, axis=1), axis=2)[:, :-1]
    return ~below


def prefilled(spec: ModelSpec, case: ExpectedCase) -> list[slice]:
    """What prefill is given: the whole history and, where entries depend on it, two chunks."""
    events = case.case.cached
    chunked = spec.layers_see_history and events > 1
    return [slice(0, events), *(chunks(case) if chunked else ())]


def chunks(case: ExpectedCase) -> tuple[slice, slice]:
    """The two parts in which a history is prefilled a second time."""
    cut, events = (case.case.cached + 2) // 3, case.case.cached
    return slice(0, cut), slice(cut, events)


def _in_chunks(prefill: Runner, case: ExpectedCase, parts: Sequence[slice]) -> Arrays:
    found = [prefill.infer(prefill_feeds(prefill.io, case, part)) for part in parts]
    return {name: np.concatenate([f[name] for f in found], axis=2) for name in found[0]}


def prefill_feeds(io: GraphSpec, case: ExpectedCase, part: slice) -> Arrays:
    """Feeds for the events in `part`; the past before them is as the reference has it."""
    inputs = case.case.inputs
    feeds = {}
    for tensor in io.inputs:
        group, name = tensor.name.split("_", 1)
        if group == "event":
            array = inputs[f"history_{name}"][:, part]
        elif f"cache_{name}" in case.outputs:
            array = case.outputs[f"cache_{name}"][:, :, : part.start]
        else:
            array = inputs[f"history_{name}"][:, : part.start]
        feeds[tensor.name] = np.ascontiguousarray(array)
    return feeds


def decode_feeds(io: GraphSpec, case: ExpectedCase, cache: Arrays) -> Arrays:
    """Decode's feeds with the entries `cache` [B, L, K, ...]."""
    given = case.case.inputs | cache
    return {tensor.name: given[tensor.name] for tensor in io.inputs}

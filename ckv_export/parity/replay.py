"""Run the cases through a runtime's graphs as a server would, and keep what came out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckv_export.contract import GraphSpec, ModelSpec
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


def replay(
    spec: ModelSpec, prefill: Runner, decode: Runner, cases: Iterable[ExpectedCase]
) -> list[CaseRun]:
    """Run every case through prefill and decode of one runtime."""
    with prefill, decode:
        return [_replay_one(spec, prefill, decode, case) for case in cases]


def _replay_one(spec: ModelSpec, prefill: Runner, decode: Runner, case: ExpectedCase) -> CaseRun:
    events = case.case.cached
    cache = prefill.infer(prefill_feeds(prefill.io, case, slice(0, events)))
    chunked = None
    if spec.layers_see_history and events > 1:
        chunked = _in_chunks(prefill, case)
    forced = forced_entries(spec, case, chunked or cache)
    decoded = decode.infer(decode_feeds(decode.io, case, forced))
    served = None
    own = kept(spec, cache)
    if _flipped(own, forced) and _are_rows(spec, own):
        served = decode.infer(decode_feeds(decode.io, case, own))
    return CaseRun(case, cache, chunked, decoded, served)


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
    same = comparable(case, "cache", cache)
    for name, got in cache.items():
        expected = case.outputs[name]
        if name.endswith("_index") or got.shape != expected.shape:
            forced[name] = expected
        else:
            forced[name] = np.where(same[..., None], got, expected)
    return kept(spec, forced)


def comparable(case: ExpectedCase, group: str, got: Arrays) -> NDArray[np.bool_]:
    """Which entries [B, L, N] of ``<group>_*`` no flip of a lower layer has touched."""
    flipped = np.zeros(next(iter(got.values())).shape[:3], bool)
    for name in case.margins:
        if name.startswith(group) and name in got and got[name].shape == flipped.shape:
            flipped |= got[name] != case.outputs[name]
    below = np.zeros_like(flipped)
    below[:, 1:] = np.maximum.accumulate(np.maximum.accumulate(flipped, axis=1), axis=2)[:, :-1]
    return ~below


def chunks(case: ExpectedCase) -> tuple[slice, slice]:
    """The two parts in which a history is prefilled a second time."""
    cut, events = (case.case.cached + 2) // 3, case.case.cached
    return slice(0, cut), slice(cut, events)


def _in_chunks(prefill: Runner, case: ExpectedCase) -> Arrays:
    parts = [prefill.infer(prefill_feeds(prefill.io, case, part)) for part in chunks(case)]
    return {name: np.concatenate([p[name] for p in parts], axis=2) for name in parts[0]}


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

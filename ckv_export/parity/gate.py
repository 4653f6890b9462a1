"""The parity gate: every output and cache tensor of a runtime against the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckv_export.contract import GraphSpec, ModelSpec
from ckv_export.errors import ParityFailure
from ckv_export.parity.compare import TensorResult, compare_rows, compare_values
from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.tolerances import tolerance_of
from ckv_export.runtimes.base import Array, Arrays, Runner, RunnerMetadata


@dataclass(frozen=True)
class RuntimeResult:
    """All comparisons of one runtime, in the order in which a request computes the tensors."""

    runtime: RunnerMetadata
    results: tuple[TensorResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every tensor of every case agrees."""
        return all(r.passed for r in self.results)

    @property
    def first_failure(self) -> TensorResult | None:
        """The first tensor that diverges."""
        return next((r for r in self.results if not r.passed), None)

    def worst(self, tensor: str) -> float:
        """Largest error of `tensor` over all cases."""
        return max((r.error for r in self.results if r.tensor == tensor), default=0.0)


def judge(
    spec: ModelSpec, prefill: Runner, decode: Runner, cases: Iterable[ExpectedCase]
) -> RuntimeResult:
    """Run every case through both graphs of one runtime, as a server would, and compare.

    Decode is fed what prefill returned, but for row numbers: those are the reference's, so that
    a flipped row (reported by itself) doesn't hide what else differs.
    """
    results: list[TensorResult] = []
    with prefill, decode:
        for case in cases:
            cache = _prefill(spec, prefill, case, results)
            results += _compare_decode(case, decode.infer(_decode_feeds(decode.io, case, cache)))
    return RuntimeResult(decode.metadata(), tuple(results))


def judge_all(
    spec: ModelSpec,
    runners: Iterable[Runner],
    cases: Sequence[ExpectedCase],
    table: Mapping[str, Array] | None,
) -> RuntimeResult:
    """`judge` prefill and decode, then `judge_items` a decode graph that takes `table`, if any."""
    prefill, decode, *by_items = runners
    outcome = judge(spec, prefill, decode, cases)
    for runner in by_items:
        assert table is not None
        extra = judge_items(runner, table, cases).results
        outcome = dataclasses.replace(outcome, results=outcome.results + extra)
    return outcome


def judge_items(
    decode: Runner, table: Mapping[str, Array], cases: Iterable[ExpectedCase]
) -> RuntimeResult:
    """Run every case through the decode graph that takes ids and an item table; compare scores."""
    results = []
    with decode:
        for case in cases:
            given = case.case.inputs | dict(table)
            score = decode.infer({t.name: given[t.name] for t in decode.io.inputs})["score"]
            expected, bound = case.outputs["score"], tolerance_of("score")
            name = f"{case.case.name}, by item table"
            results.append(compare_values(name, "score", score, expected, bound))
    return RuntimeResult(decode.metadata(), tuple(results))


def require_pass(outcome: RuntimeResult) -> None:
    """Raise `ParityFailure` naming the first tensor that diverges, and by how much."""
    failure = outcome.first_failure
    if failure is not None:
        raise ParityFailure(
            f"{outcome.runtime.runtime} does not compute what the reference model computes: "
            f"{failure.sentence()}"
        )


def _prefill(
    spec: ModelSpec, prefill: Runner, case: ExpectedCase, results: list[TensorResult]
) -> Arrays:
    """The cache of all K events that decode takes; adds the comparisons to `results`."""
    events = case.case.cached
    cache = prefill.infer(_prefill_feeds(prefill.io, case, slice(0, events)))
    results += _compare_entries(case, case.case.name, cache)
    if spec.layers_see_history and events > 1:
        cache = _prefill_in_chunks(prefill, case)
        results += _compare_entries(case, f"{case.case.name}, prefill in two chunks", cache)
    forced = cache | {name: case.outputs[name] for name in cache if name.endswith("_index")}
    first = events - spec.cached_events(events)
    return {name: np.ascontiguousarray(a[:, :, first:]) for name, a in forced.items()}


def _prefill_in_chunks(prefill: Runner, case: ExpectedCase) -> Arrays:
    cut, events = (case.case.cached + 2) // 3, case.case.cached
    parts = [
        prefill.infer(_prefill_feeds(prefill.io, case, part))
        for part in (slice(0, cut), slice(cut, events))
    ]
    return {name: np.concatenate([p[name] for p in parts], axis=2) for name in parts[0]}


def _prefill_feeds(io: GraphSpec, case: ExpectedCase, part: slice) -> Arrays:
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


def _decode_feeds(io: GraphSpec, case: ExpectedCase, cache: Arrays) -> Arrays:
    given = case.case.inputs | cache
    return {tensor.name: given[tensor.name] for tensor in io.inputs}


def _compare_entries(case: ExpectedCase, name: str, got: Mapping[str, Array]) -> list[TensorResult]:
    results = []
    for tensor, array in got.items():
        expected = case.outputs[tensor]
        if tensor in case.margins:
            results.append(compare_rows(name, tensor, array, expected, case.margins[tensor]))
        else:
            results.append(
                compare_values(name, tensor, array, expected, tolerance_of(tensor, array.shape[1]))
            )
    return results


def _compare_decode(case: ExpectedCase, got: Arrays) -> list[TensorResult]:
    score = got.pop("score")
    layers = next(iter(got.values())).shape[1]
    results = _compare_entries(case, case.case.name, got)
    counted = _unflipped_users(case, got)
    results.append(
        compare_values(
            case.case.name,
            "score",
            score,
            case.outputs["score"],
            tolerance_of("score", layers),
            counted,
        )
    )
    return results


def _unflipped_users(case: ExpectedCase, got: Arrays) -> NDArray[np.bool_]:
    """Users whose appended events got the reference's rows: only their scores are comparable."""
    users = np.ones(case.outputs["score"].shape[0], bool)
    for tensor in case.margins:
        if tensor in got:
            users &= (got[tensor] == case.outputs[tensor]).all(axis=(1, 2))
    return users

"""The parity gate: every output and cache tensor of a runtime against the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ckv_export.contract import ModelSpec
from ckv_export.errors import ParityFailure
from ckv_export.parity.compare import TensorResult, alike, compare_rows, compare_values
from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.replay import CaseRun, comparable, replay
from ckv_export.parity.tolerances import (
    MOST_EXCUSED_SCORES,
    entry_tolerances,
    routing_of,
    selection_of,
    tolerance_of,
)
from ckv_export.runtimes.base import Array, Arrays, Runner, RunnerMetadata

EVERY_CASE = "all cases"
"""Stands for a case in a result about all of them."""


@dataclass(frozen=True)
class RuntimeResult:
    """All comparisons of one runtime, in the order in which a request computes the tensors.

    `runs`: what they were made on; `name`: of the runtime as `--runtime` takes it; `unproven`: see
    `unproven_scores`.
    """

    runtime: RunnerMetadata
    results: tuple[TensorResult, ...]
    runs: tuple[CaseRun, ...] = field(default=(), compare=False, repr=False)
    name: str = ""
    unproven: str = ""

    @property
    def label(self) -> str:
        """The runtime in a few words."""
        return f"{self.runtime.runtime} {self.runtime.version} ({self.runtime.device})"

    @property
    def passed(self) -> bool:
        """Whether every tensor of every case agrees."""
        return all(r.passed for r in self.results)

    @property
    def first_failure(self) -> TensorResult | None:
        """The first tensor that diverges."""
        return next((r for r in self.results if not r.passed), None)

    @property
    def each_case(self) -> list[TensorResult]:
        """The results about one case, without those about all of them."""
        return [r for r in self.results if r.case != EVERY_CASE]

    def worst(self, tensor: str) -> float:
        """Largest error of `tensor` over all cases."""
        return max((r.error for r in self.each_case if r.tensor == tensor), default=0.0)


def judge(
    spec: ModelSpec,
    prefill: Runner,
    decode: Runner,
    cases: Iterable[ExpectedCase],
    precision: str = "fp32",
) -> RuntimeResult:
    """Run every case through both graphs of one runtime, as a server would, and compare.

    Decode is fed what prefill returned, but for row numbers: those are the reference's, so that
    a flipped row (reported by itself) doesn't hide what else differs.
    """
    runs = tuple(replay(spec, prefill, decode, cases))
    results = [result for run in runs for result in compare_run(run, precision)]
    results += _overall(results, spec.num_layers, precision)
    unproven = unproven_scores([run.case for run in runs], spec.num_layers, precision)
    return RuntimeResult(decode.metadata(), tuple(results), runs, unproven=unproven)


def judge_all(
    spec: ModelSpec,
    runners: Iterable[Runner],
    cases: Sequence[ExpectedCase],
    table: Mapping[str, Array] | None,
    precision: str = "fp32",
) -> RuntimeResult:
    """`judge` prefill and decode, then `judge_items` a decode graph that takes `table`, if any."""
    prefill, decode, *by_items = runners
    outcome = judge(spec, prefill, decode, cases, precision)
    for runner in by_items:
        assert table is not None
        extra = judge_items(runner, table, cases, precision).results
        outcome = dataclasses.replace(outcome, results=outcome.results + extra)
    return outcome


def judge_items(
    decode: Runner,
    table: Mapping[str, Array],
    cases: Iterable[ExpectedCase],
    precision: str = "fp32",
) -> RuntimeResult:
    """Run every case through the decode graph that takes ids and an item table; compare scores."""
    results = []
    with decode:
        for case in cases:
            given = case.case.inputs | dict(table)
            score = decode.infer({t.name: given[t.name] for t in decode.io.inputs})["score"]
            name = f"{case.case.name}, by item table"
            results.append(_compare_score(case, name, score, None, 1, precision))
    return RuntimeResult(decode.metadata(), (*results, *_overall(results, 1, precision)))


def unproven_scores(cases: Sequence[ExpectedCase], layers: int, precision: str = "fp32") -> str:
    """A sentence where a graph that gave every candidate one and the same score would pass too.

    So it is where no two scores are farther apart than rounding may be: with clicks that rare, or
    with a sigmoid that is saturated. Empty where the cases tell more.
    """
    scores = [case.outputs["score"] for case in cases if case.outputs["score"].size]
    if not scores:
        return ""
    low, high = (float(of([of(score) for score in scores])) for of in (np.min, np.max))
    results = [
        _compare_score(
            case, "", np.full_like(case.outputs["score"], (low + high) / 2), None, layers, precision
        )
        for case in cases
    ]
    if not all(r.passed for r in (*results, *_overall(results, layers, precision))):
        return ""
    return (
        f"these cases prove nothing about scores: all lie between {low:.3g} and {high:.3g}, and a "
        f"graph that scored every candidate {(low + high) / 2:.3g} would pass too; judge real "
        "requests whose scores differ (ckv-export parity --events)"
    )


def require_pass(outcome: RuntimeResult) -> None:
    """Raise `ParityFailure` naming the first tensor that diverges, and by how much."""
    failure = outcome.first_failure
    if failure is not None:
        raise ParityFailure(
            f"{outcome.runtime.runtime} does not compute what the reference model computes: "
            f"{failure.sentence()}"
        )


def compare_run(run: CaseRun, precision: str) -> Iterator[TensorResult]:
    """The comparisons of one case, in the order of computation."""
    case, name = run.case, run.case.case.name
    yield from _compare_entries(case, name, run.cache, precision)
    if run.chunked is not None:
        chunks = f"{name}, prefill in two chunks"
        yield from _compare_entries(case, chunks, run.chunked, precision)
    got = {n: a for n, a in run.decoded.items() if n != "score"}
    yield from _compare_entries(case, name, got, precision)
    counted = unflipped_users(case, got)
    yield _compare_score(case, name, run.decoded["score"], counted, case.layers, precision)


def _compare_entries(
    case: ExpectedCase, name: str, got: Arrays, precision: str
) -> Iterator[TensorResult]:
    same = comparable(case, got)
    needed = [routing_of(layer, precision).margin for layer in range(case.layers)]
    for tensor, array in got.items():
        expected = case.outputs[tensor]
        if tensor in case.margins:
            yield compare_rows(name, tensor, array, expected, case.margins[tensor], needed, same)
        else:
            bounds = entry_tolerances(tensor, case.layers, precision)
            yield compare_values(name, tensor, array, expected, bounds, same)


def _compare_score(
    case: ExpectedCase,
    name: str,
    score: Array,
    counted: NDArray[np.bool_] | None,
    layers: int,
    precision: str,
) -> TensorResult:
    near = None
    if case.selection is not None:
        near = case.selection.astype(np.float64) < selection_of(layers, precision)
    bound = tolerance_of("score", layers, precision)
    return compare_values(name, "score", score, case.outputs["score"], [bound], counted, near)


def unflipped_users(case: ExpectedCase, got: Arrays) -> NDArray[np.bool_]:
    """Users whose appended events got the reference's rows: only their scores are comparable."""
    users = np.ones(case.outputs["score"].shape[0], bool)
    for tensor in case.margins:
        if tensor in got and alike(got[tensor], case.outputs[tensor]):
            users &= (got[tensor] == case.outputs[tensor]).all(axis=(1, 2))
    return users


def _overall(
    results: Sequence[TensorResult], layers: int, precision: str
) -> Iterator[TensorResult]:
    """A failure for each tensor of which too much was excused, or that is off on average."""
    for tensor in dict.fromkeys(r.tensor for r in results):
        same = [r for r in results if r.tensor == tensor]
        elements = sum(r.elements for r in same)
        if not elements:
            continue
        yield from _excused(tensor, same, elements, layers, precision)
        bound = None
        if not tensor.endswith("_index"):
            bound = tolerance_of(tensor, layers, precision).typical
        mean = sum(r.mean * r.elements for r in same) / elements
        if bound is not None and not mean <= bound:
            told = f"{tensor} is off by {mean:.2g} on average where {bound:.2g} is allowed"
            yield _about_all(tensor, elements, mean, bound, 0, told)


def _excused(
    tensor: str, same: Sequence[TensorResult], elements: int, layers: int, precision: str
) -> Iterator[TensorResult]:
    excused = sum(r.explained for r in same)
    most = MOST_EXCUSED_SCORES if tensor == "score" else routing_of(layers - 1, precision).most
    if excused > max(1, most * elements):
        told = (
            f"{excused} of {elements} elements of {tensor} were excused as near-ties where "
            f"{most:.2%} at most can be rounding"
        )
        yield _about_all(tensor, elements, excused / elements, most, excused, told)


def _about_all(
    tensor: str, elements: int, error: float, allowed: float, explained: int, told: str
) -> TensorResult:
    where = EVERY_CASE, tensor, elements, error, allowed
    return TensorResult(*where, None, explained, None, passed=False, told=told)

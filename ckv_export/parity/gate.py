"""The parity gate: every output and cache tensor of a runtime against the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckv_export.contract import ModelSpec
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
            cache = prefill.infer(_prefill_feeds(spec, case.case.inputs))
            results += _compare_entries(case, cache)
            results += _compare_decode(case, decode.infer(_decode_feeds(spec, case, cache)))
    return RuntimeResult(decode.metadata(), tuple(results))


def require_pass(outcome: RuntimeResult) -> None:
    """Raise `ParityFailure` naming the first tensor that diverges, and by how much."""
    failure = outcome.first_failure
    if failure is not None:
        raise ParityFailure(
            f"{outcome.runtime.runtime} does not compute what the reference model computes: "
            f"{failure.sentence()}"
        )


def _prefill_feeds(spec: ModelSpec, inputs: Arrays) -> Arrays:
    feeds = {f"event_{f.name}": inputs[f"history_{f.name}"] for f in spec.item_features}
    return feeds | {"event_mask": inputs["history_mask"]}


def _decode_feeds(spec: ModelSpec, case: ExpectedCase, cache: Mapping[str, Array]) -> Arrays:
    first = case.case.cached - spec.cached_events(case.case.cached)
    forced = {n: case.outputs[n] if n.endswith("_index") else a for n, a in cache.items()}
    feeds = {name: np.ascontiguousarray(a[:, :, first:]) for name, a in forced.items()}
    return case.case.inputs | feeds


def _compare_entries(case: ExpectedCase, got: Mapping[str, Array]) -> list[TensorResult]:
    name, results = case.case.name, []
    for tensor, array in got.items():
        expected = case.outputs[tensor]
        if tensor in case.margins:
            results.append(compare_rows(name, tensor, array, expected, case.margins[tensor]))
        else:
            results.append(compare_values(name, tensor, array, expected, tolerance_of(tensor)))
    return results


def _compare_decode(case: ExpectedCase, got: Arrays) -> list[TensorResult]:
    score = got.pop("score")
    results = _compare_entries(case, got)
    counted = _unflipped_users(case, got)
    results.append(
        compare_values(
            case.case.name, "score", score, case.outputs["score"], tolerance_of("score"), counted
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

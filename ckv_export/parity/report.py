"""The gate's outcome as data; `page` shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ckv_export.manifest import Manifest
from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.gate import RuntimeResult
from ckv_export.parity.localize import Divergence
from ckv_export.parity.ranking import RankingReport, ranking_report
from ckv_export.parity.replay import CaseRun
from ckv_export.parity.routing import RoutingReport, routing_report
from ckv_export.parity.statistics import ErrorStatistics, error_statistics
from ckv_export.parity.steps import StepsReport
from ckv_export.parity.tolerances import (
    EXPLAINED_MARGIN,
    EXPLAINED_SELECTION,
    ROUTINGS,
    TOLERANCES,
)
from ckv_export.parity.truth import RECORDED

SCHEMA_VERSION = 3
JSON_FILE = "parity.json"
PAGE_FILE = "parity.html"
TOP = 10
"""How many of the best candidates a ranking is judged by, unless told."""


@dataclass(frozen=True)
class ParityReport:
    """What was compared with the truth: runtimes, cases, and what this machine couldn't run.

    `inputs`: where the cases come from; `top`: see `RankingReport`; `steps` and `localized`: of
    each runtime by name, where they were asked for.
    """

    model: str
    fingerprint: str
    seed: int
    cases: int
    outcomes: tuple[RuntimeResult, ...]
    not_run: Mapping[str, str]
    precision: str = "fp32"
    truth: str = RECORDED
    inputs: str = "generated"
    top: int = TOP
    steps: Mapping[str, StepsReport] = field(default_factory=dict)
    localized: Mapping[str, Divergence | str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        cases: Sequence[ExpectedCase],
        outcomes: tuple[RuntimeResult, ...],
        not_run: Mapping[str, str],
        *,
        seed: int,
        **more: Any,
    ) -> ParityReport:
        """The report about a bundle; `more`: the fields that have defaults."""
        about = (manifest.name, manifest.fingerprint, seed, len(cases))
        return cls(*about, outcomes, not_run, manifest.precision, **more)

    @property
    def passed(self) -> bool:
        """Whether every runtime agrees with the truth."""
        return all(outcome.passed for outcome in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """JSON data with every comparison, as ``parity.schema.json`` describes it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "precision": self.precision,
            "truth": self.truth,
            "inputs": self.inputs,
            "seed": self.seed,
            "cases": self.cases,
            "passed": self.passed,
            "tolerances": {name: asdict(t) for name, t in TOLERANCES.items()},
            "routings": {name: asdict(r) for name, r in ROUTINGS.items()},
            "explained_margin": EXPLAINED_MARGIN,
            "explained_selection": EXPLAINED_SELECTION,
            "not_run": dict(self.not_run),
            "runtimes": [plain(self._outcome_dict(outcome)) for outcome in self.outcomes],
        }

    def _outcome_dict(self, outcome: RuntimeResult) -> dict[str, Any]:
        found, steps = self.localized.get(outcome.name), self.steps.get(outcome.name)
        return {
            "name": outcome.name or outcome.runtime.runtime,
            **asdict(outcome.runtime),
            "passed": outcome.passed,
            "unproven": outcome.unproven,
            "cases": len(outcome.runs),
            "tensors": [row.to_dict() for row in tensor_rows(outcome)],
            "routing": routing_of_runs(outcome).to_dict(),
            "ranking": self.ranking(outcome).to_dict(),
            "steps": steps and steps.to_dict(),
            "localized": found.to_dict() if isinstance(found, Divergence) else found,
            "results": [result.to_dict() for result in outcome.results],
        }

    def ranking(self, outcome: RuntimeResult) -> RankingReport:
        """How one runtime ranks the candidates."""
        return ranking_report(outcome.runs, self.top)

    def summary(self) -> dict[str, Any]:
        """What the manifest keeps: passed, cases, and each runtime's worst score error."""
        worst = {o.runtime.runtime: o.worst("score") for o in self.outcomes}
        return {
            "passed": self.passed,
            "seed": self.seed,
            "cases": self.cases,
            "worst_score_error": worst,
        }


@dataclass(frozen=True)
class TensorRow:
    """One tensor over all cases: how it came out, and for numbers how far off it is."""

    tensor: str
    elements: int
    differing: int
    worst: float
    excused: int
    passed: bool
    statistics: ErrorStatistics | None

    @property
    def is_index(self) -> bool:
        """Whether it holds row numbers."""
        return self.tensor.endswith("_index")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self) | {"statistics": self.statistics and self.statistics.to_dict()}


def tensors_of(outcome: RuntimeResult) -> list[str]:
    """Names of the tensors compared, each once, in order."""
    return list(dict.fromkeys(r.tensor for r in outcome.results))


def tensor_rows(outcome: RuntimeResult) -> list[TensorRow]:
    """A row per tensor compared."""
    rows = []
    for tensor in tensors_of(outcome):
        results = [r for r in outcome.each_case if r.tensor == tensor]
        is_index = tensor.endswith("_index")
        errors = [r.error for r in results]
        statistics = None
        if not is_index and outcome.runs:
            statistics = error_statistics(_pair(run, tensor) for run in outcome.runs)
        rows.append(
            TensorRow(
                tensor,
                sum(r.elements for r in results),
                int(sum(e for e in errors if math.isfinite(e))) if is_index else 0,
                max(errors),
                sum(r.explained for r in results),
                all(r.passed for r in outcome.results if r.tensor == tensor),
                statistics,
            )
        )
    return rows


def _pair(run: CaseRun, tensor: str) -> tuple[Any, Any]:
    got = run.cache if tensor.startswith("cache_") else run.decoded
    return got[tensor], run.case.outputs[tensor]


def routing_of_runs(outcome: RuntimeResult) -> RoutingReport:
    """What became of row numbers in one runtime."""
    return routing_report(outcome.runs)


def plain(value: Any) -> Any:
    """JSON data with null in place of numbers that aren't finite, and lists of tuples."""
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

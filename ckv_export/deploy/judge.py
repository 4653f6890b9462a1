"""The parity gate while a bundle is made: reference, split model, ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ckv_export.deploy.pools import pool_arrays
from ckv_export.deploy.prepare import Prepared
from ckv_export.manifest import Manifest
from ckv_export.model.registry import build_reference
from ckv_export.parity import expected, inputs
from ckv_export.parity.bundle import CASES_FILE, judge_onnxruntime
from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.gate import RuntimeResult, judge_all, require_pass
from ckv_export.parity.page import write_report
from ckv_export.parity.report import ParityReport
from ckv_export.runtimes.base import Arrays
from ckv_export.runtimes.bound import BoundRunner
from ckv_export.runtimes.torch import TorchRunner
from ckv_export.stages import Stages


def run_gate(
    folder: Path,
    manifest: Manifest,
    prepared: Prepared,
    table: Arrays | None,
    seed: int,
    stages: Stages,
) -> ParityReport:
    """Judge every form of the model and leave cases and report in `folder`.

    Raises `ParityFailure` at the first runtime that fails.
    """
    spec = prepared.checkpoint.spec
    with stages.stage("parity: reference") as stage:
        reference = build_reference(spec, prepared.checkpoint.state)
        generated = inputs.generate(spec, seed, prepared.catalogue)
        cases = expected.record(reference, generated, prepared.form)
        stage.remark = f"{len(cases)} cases, seed {seed}"
    runtimes: dict[str, Callable[[], RuntimeResult]] = {
        "split model": lambda: _judge_split(prepared, table, cases),
        "ONNX Runtime": lambda: judge_onnxruntime(folder, manifest, cases, table),
    }
    outcomes = []
    for title, judged in runtimes.items():
        with stages.stage(f"parity: {title}") as stage:
            outcomes.append(judged())
            stage.remark = f"worst score error {outcomes[-1].worst('score'):.1e}"
            require_pass(outcomes[-1])
    expected.save(folder / CASES_FILE, cases)
    report = ParityReport.of(manifest, cases, tuple(outcomes), {}, seed=seed)
    write_report(report, folder)
    return report


def _judge_split(
    prepared: Prepared, table: Arrays | None, cases: Sequence[ExpectedCase]
) -> RuntimeResult:
    spec, pools = prepared.checkpoint.spec, given_pools(prepared)
    runners = (BoundRunner(TorchRunner(graph, graph.io), pools) for graph in prepared.graphs)
    return judge_all(spec, runners, cases, table, prepared.model.precision)


def given_pools(prepared: Prepared) -> Arrays:
    """The pools that the graphs take as inputs, none where they hold them."""
    return pool_arrays(prepared.model) if prepared.form.pools is not None else {}

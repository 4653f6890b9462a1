"""The gate on a finished bundle: every runtime that this machine has."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ckv_export.cache.item_table import load_item_table
from ckv_export.errors import BundleError, EngineError, ExportError, InputError, MissingDependency
from ckv_export.manifest import Manifest
from ckv_export.parity import expected
from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.gate import RuntimeResult, judge_all
from ckv_export.parity.lineup import Contender, Lineup, onnxruntime_runners
from ckv_export.runtimes.base import Arrays
from ckv_export.stages import Stages

CASES_FILE = "parity_cases.npz"


def recorded_cases(folder: Path, manifest: Manifest) -> list[ExpectedCase]:
    """The reference's answers that the bundle holds; raises `BundleError` without any."""
    if CASES_FILE not in manifest.files:
        raise BundleError(
            f"{folder} was exported without parity, so it holds no recorded cases: export it again"
        )
    return expected.load(folder / CASES_FILE)


def judge_onnxruntime(
    folder: Path, manifest: Manifest, cases: Sequence[ExpectedCase], table: Arrays | None
) -> RuntimeResult:
    """All ONNX files of `folder` on ONNX Runtime's CPU provider."""
    runners = onnxruntime_runners(folder, manifest)
    return judge_all(manifest.model, runners, cases, table, manifest.precision)


def judge_lineup(
    folder: Path,
    manifest: Manifest,
    cases: Sequence[ExpectedCase],
    lineup: Lineup,
    asked: bool,
    stages: Stages,
) -> tuple[tuple[RuntimeResult, ...], dict[str, str]]:
    """Judge every contender; returns the outcomes, and a sentence for each that didn't run.

    A runtime that was `asked` for by name and turns out not to run raises `InputError`.
    """
    table = load_item_table(folder) if manifest.item_table else None
    outcomes, not_run = [], dict(lineup.not_run)
    for contender in lineup.contenders:
        with stages.stage(f"parity: {contender.name}") as stage:
            outcome = _judged(manifest, cases, table, contender)
            if isinstance(outcome, str):
                if asked:
                    raise InputError(f"{contender.name} can't run here: {outcome}")
                not_run[contender.name] = stage.remark = outcome
                continue
            outcomes.append(dataclasses.replace(outcome, name=contender.name))
            stage.remark = _remark(outcome, len(cases))
    return tuple(outcomes), not_run


def _remark(outcome: RuntimeResult, cases: int) -> str:
    left = cases - len(outcome.runs)
    beyond = f"; {left} cases are beyond its profile" if left else ""
    return f"worst score error {outcome.worst('score'):.1e}{beyond}"


def _judged(
    manifest: Manifest, cases: Sequence[ExpectedCase], table: Arrays | None, contender: Contender
) -> RuntimeResult | str:
    """The outcome, or why there is none."""
    spec = manifest.model
    taken = [c for c in cases if contender.takes(spec, c)]
    if not taken:
        return "none of the cases is within its profile: build it with wider ranges"
    try:
        runners = contender.runners()
        for runner in runners:
            with runner:
                pass
    except (EngineError, ExportError, MissingDependency) as error:
        # ONNX Runtime on the CPU runs everything: else the file is broken.
        if contender.name == "onnxruntime-cpu":
            raise
        return str(error)
    return judge_all(spec, runners, taken, table, manifest.precision)

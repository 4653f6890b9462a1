"""The gate on a finished bundle, from its files alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckv_export.cache.item_table import load_item_table
from ckv_export.cache.pool_file import load_pools
from ckv_export.errors import BundleError
from ckv_export.manifest import Manifest
from ckv_export.parity import expected
from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.gate import RuntimeResult, judge_all
from ckv_export.parity.report import ParityReport
from ckv_export.runtimes.base import Arrays
from ckv_export.runtimes.bound import BoundRunner
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner

CASES_FILE = "parity_cases.npz"


def judge_onnxruntime(
    folder: Path, manifest: Manifest, cases: Sequence[ExpectedCase], table: Arrays | None
) -> RuntimeResult:
    """All ONNX files of `folder` on ONNX Runtime's CPU provider."""
    pools = load_pools(folder, manifest)
    runners = (
        BoundRunner(OnnxRuntimeRunner(folder / f"{name}.onnx", manifest.graph(name)), pools)
        for name in manifest.graph_names
    )
    return judge_all(manifest.model, runners, cases, table)


def recheck(folder: Path, manifest: Manifest) -> ParityReport:
    """Judge the bundle by the reference outputs it holds; raises `BundleError` without any."""
    if manifest.parity is None or CASES_FILE not in manifest.files:
        raise BundleError(
            f"{folder} was exported without parity, so it holds no recorded cases: export it again"
        )
    cases = expected.load(folder / CASES_FILE)
    table = load_item_table(folder) if manifest.item_table else None
    outcome = judge_onnxruntime(folder, manifest, cases, table)
    return ParityReport(
        manifest.name,
        manifest.fingerprint,
        int(manifest.parity["seed"]),
        len(cases),
        (outcome,),
        {},
    )

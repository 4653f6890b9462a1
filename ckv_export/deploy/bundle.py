"""The main job: a checkpoint to a published bundle."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckv_export import __version__
from ckv_export.checkpoint.load import Checkpoint, load_checkpoint
from ckv_export.contract import Profile, Range
from ckv_export.deploy.engines import Display, EngineOptions, build_engines
from ckv_export.deploy.publish import check_target, staged
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.manifest import FileEntry, Manifest
from ckv_export.model.fingerprint import fingerprint
from ckv_export.model.registry import build_model, build_reference
from ckv_export.onnx_export import functions
from ckv_export.onnx_export.check import check_file
from ckv_export.onnx_export.export import export_graph
from ckv_export.onnx_export.save import save_models
from ckv_export.parity import expected, inputs
from ckv_export.parity.bundle import CASES_FILE, judge_onnxruntime
from ckv_export.parity.gate import judge, require_pass
from ckv_export.parity.report import ParityReport
from ckv_export.runtimes.torch import TorchRunner
from ckv_export.stages import Stages

_RECORDED_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")


@dataclass(frozen=True)
class ExportRequest:
    """What the user asked for.

    `name`: the bundle's, None for the checkpoint's; `axes`: ranges that replace the default
    profile's; `engines`: None to build none; `weights`, `params`: see `load_checkpoint`.
    """

    model: Path
    out: Path
    name: str | None = None
    weights: str | None = None
    params: str | None = None
    force: bool = False
    parity: bool = True
    seed: int = 0
    axes: tuple[tuple[str, Range], ...] = ()
    engines: EngineOptions | None = None


@dataclass(frozen=True)
class Exported:
    """A published bundle and what came of the gate (None if it was switched off)."""

    folder: Path
    manifest: Manifest
    parity: ParityReport | None


Graphs = Sequence[PrefillGraph | DecodeGraph]


def export_bundle(request: ExportRequest, stages: Stages, display: Display) -> Exported:
    """Export, judge, build, publish; the bundle appears at the end or not at all.

    Raises `CheckpointError` or `SpecError` for a bad model, `BundleError` for a bad place,
    `ParityFailure` where the gate fails; whatever happens, `request.out` is then as it was.
    """
    if request.name is not None:
        check_target(request.out, request.name, request.force)
    with stages.stage("load") as stage:
        checkpoint = load_checkpoint(request.model, weights=request.weights, params=request.params)
        stage.remark = f"{checkpoint.spec.kind}, {_weights_text(checkpoint)}"
    target = check_target(request.out, request.name or checkpoint.name, request.force)
    with staged(target) as folder:
        manifest, report = _fill(folder, request, checkpoint, target.name, stages, display)
        with stages.stage("publish"):
            check_target(request.out, target.name, request.force)
            manifest = dataclasses.replace(manifest, timings=stages.timings()).with_files(folder)
            manifest.write(folder)
    return Exported(target, manifest, report)


def _weights_text(checkpoint: Checkpoint) -> str:
    size = sum(t.numel() * t.element_size() for t in checkpoint.state.values())
    return f"{len(checkpoint.state)} tensors, {size / 1e6:.1f} MB"


def _fill(
    folder: Path,
    request: ExportRequest,
    checkpoint: Checkpoint,
    name: str,
    stages: Stages,
    display: Display,
) -> tuple[Manifest, ParityReport | None]:
    """Put everything but the manifest into `folder`."""
    with stages.stage("split") as stage:
        model = build_model(checkpoint.spec, checkpoint.state)
        graphs: Graphs = (PrefillGraph(model), DecodeGraph(model))
        identity = fingerprint(checkpoint.spec, checkpoint.state)
        stage.remark = f"fingerprint {identity[:16]}"
    _export(folder, graphs, stages)
    manifest = _manifest(request, checkpoint, name, identity)
    report = None
    if request.parity:
        report = _judge(folder, manifest, checkpoint, graphs, request.seed, stages)
        manifest = dataclasses.replace(manifest, parity=report.summary())
    if request.engines is not None:
        manifest = build_engines(folder, manifest, request.engines, stages, display)
    return manifest, report


def _export(folder: Path, graphs: Graphs, stages: Stages) -> None:
    models = {}
    for graph in graphs:
        with stages.stage(f"export {graph.io.name}") as stage:
            models[graph.io.name] = export_graph(graph)
            stage.remark = f"{models[graph.io.name].graph.num_nodes()} nodes"
    with stages.stage("save ONNX") as stage:
        files = save_models(models, folder)
        stage.remark = ", ".join(f"{p.name} {p.stat().st_size / 1e6:.1f} MB" for p in files)
    with stages.stage("check ONNX"):
        for graph in graphs:
            check_file(folder / f"{graph.io.name}.onnx", graph.io, _pools(graph))


def _pools(graph: PrefillGraph | DecodeGraph) -> int:
    attention = graph.model.spec.attention
    sides = sum(attention.shared(side) for side in ("k", "v")) * graph.model.spec.num_layers
    return sides if isinstance(graph, DecodeGraph) else 0


def _manifest(request: ExportRequest, checkpoint: Checkpoint, name: str, identity: str) -> Manifest:
    files = [{"name": p.name, **dataclasses.asdict(FileEntry.of(p))} for p in checkpoint.files]
    return Manifest(
        name=name,
        fingerprint=identity,
        model=checkpoint.spec,
        profile=Profile.default(checkpoint.spec).replaced(checkpoint.spec, dict(request.axes)),
        source={"kind": checkpoint.source, "files": files},
        versions={"ckv-export": __version__, **_versions()},
        operators={functions.DOMAIN: functions.DOMAIN_VERSION, "opset": functions.OPSET},
        notes=checkpoint.notes,
        timings={},
        parity=None,
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in _RECORDED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _judge(
    folder: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    graphs: Graphs,
    seed: int,
    stages: Stages,
) -> ParityReport:
    """Run the gate; raises `ParityFailure` at the first runtime that fails it."""
    outcomes = []
    with stages.stage("parity: reference") as stage:
        reference = build_reference(checkpoint.spec, checkpoint.state)
        cases = expected.record(reference, inputs.generate(checkpoint.spec, seed))
        stage.remark = f"{len(cases)} cases, seed {seed}"
    with stages.stage("parity: split model") as stage:
        prefill, decode = (TorchRunner(graph, graph.io) for graph in graphs)
        outcomes.append(judge(checkpoint.spec, prefill, decode, cases))
        stage.remark = f"worst score error {outcomes[-1].worst('score'):.1e}"
        require_pass(outcomes[-1])
    with stages.stage("parity: ONNX Runtime") as stage:
        outcomes.append(judge_onnxruntime(folder, manifest, cases))
        stage.remark = f"worst score error {outcomes[-1].worst('score'):.1e}"
        require_pass(outcomes[-1])
    expected.save(folder / CASES_FILE, cases)
    report = ParityReport(
        manifest.name, manifest.fingerprint, seed, len(cases), tuple(outcomes), {}
    )
    report.write(folder)
    return report

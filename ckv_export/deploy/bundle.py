"""The main job: a checkpoint to a published bundle."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckv_export import __version__
from ckv_export.cache.item_table import row_bytes, save_item_table
from ckv_export.cache.pool_file import save_pools
from ckv_export.checkpoint.load import Checkpoint, load_checkpoint
from ckv_export.contract import Profile, Range
from ckv_export.deploy import item_table
from ckv_export.deploy.engines import Display, EngineOptions, build_engines
from ckv_export.deploy.judge import run_gate
from ckv_export.deploy.pools import pool_arrays
from ckv_export.deploy.prepare import FEATURES_INLINE, FormRequest, Graph, Prepared, prepare
from ckv_export.deploy.profiles import resolve
from ckv_export.deploy.publish import check_target, require_outside, staged
from ckv_export.graphs.decode_items import DecodeItemsGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.manifest import POOLS_FILE, FileEntry, ItemTable, Manifest
from ckv_export.model.fingerprint import Fingerprints, lookup_fingerprint
from ckv_export.onnx_export import functions
from ckv_export.onnx_export.check import check_file
from ckv_export.onnx_export.export import export_graph
from ckv_export.onnx_export.save import save_models
from ckv_export.parity.interop import write_scripts
from ckv_export.parity.report import ParityReport
from ckv_export.runtimes.base import Arrays
from ckv_export.stages import Stages

_RECORDED_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")


@dataclass(frozen=True)
class ExportRequest:
    """What the user asked for.

    `name`: the bundle's, None for the checkpoint's; `axes`: ranges that replace the default
    profile's; `form`: which graphs there shall be; `engines`: None to build none; `weights`,
    `params`: see `load_checkpoint`; `files`: what else was read for it.
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
    form: FormRequest = FEATURES_INLINE
    engines: EngineOptions | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Exported:
    """A published bundle and what came of the gate (None if it was switched off)."""

    folder: Path
    manifest: Manifest
    parity: ParityReport | None


def export_bundle(request: ExportRequest, stages: Stages, display: Display) -> Exported:
    """Export, judge, build, publish; the bundle appears at the end or not at all.

    Raises `CheckpointError` or `SpecError` for a bad model, `BundleError` for a bad place,
    `ParityFailure` where the gate fails; whatever happens, `request.out` is then as it was.
    """
    if request.engines is not None:
        # Told before anything is exported.
        request.engines.settings_for(request.form.pool)
    if request.name is not None:
        check_target(request.out, request.name, request.force)
    with stages.stage("load") as stage:
        checkpoint = load_checkpoint(request.model, weights=request.weights, params=request.params)
        stage.remark = f"{checkpoint.spec.kind}, {_weights_text(checkpoint)}"
    target = check_target(request.out, request.name or checkpoint.name, request.force)
    caches = () if request.engines is None else request.engines.caches
    files = (*checkpoint.files, *request.files)
    require_outside(target, *files, request.form.item_features, *caches)
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
        prepared = prepare(checkpoint, request.form)
        prints = Fingerprints.of(
            checkpoint.spec, checkpoint.state, lookup_fingerprint(prepared.looked_up)
        )
        stage.remark = f"fingerprint {prints.model[:16]}"
    manifest = _manifest(request, prepared, name, prints)
    resolve((), manifest.profile, manifest)  # refuses what no request could meet
    table = _item_table(folder, prepared, stages) if request.form.item_table else None
    _export(folder, prepared.graphs, stages)
    if prepared.form.pools is not None:
        save_pools(folder / POOLS_FILE, pool_arrays(prepared.model), prints.model, prints.entries)
    if request.engines is not None:
        # Told before the gate has run, not after.
        request.engines.shapes(manifest)
    report = None
    if request.parity:
        report = run_gate(folder, manifest, prepared, table, request.seed, stages)
        manifest = dataclasses.replace(manifest, parity=report.summary())
        write_scripts(folder)
    if request.engines is not None:
        manifest = build_engines(folder, manifest, request.engines, stages, display)
    return manifest, report


def _item_table(folder: Path, prepared: Prepared, stages: Stages) -> Arrays:
    with stages.stage("item table") as stage:
        model, key = item_table.require_item_model(prepared.model), prepared.form.item_key
        assert key is not None
        items = item_table.items_of(model.spec, key)
        table = item_table.build_item_table(model, items)
        save_item_table(folder, table)
        size = row_bytes(item_table.layout(model))
        stage.remark = f"{items} items of {size} bytes, {items * size / 1e6:.1f} MB"
    return table


def _export(folder: Path, graphs: Sequence[Graph], stages: Stages) -> None:
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


def _pools(graph: Graph) -> int:
    """How many nodes read pools: one a layer, if K and V both have one; prefill has one layer less.

    An entry of a layer needs the attention of the layers below it, not its own.
    """
    return graph.model.spec.num_layers - isinstance(graph, PrefillGraph)


def _manifest(
    request: ExportRequest, prepared: Prepared, name: str, prints: Fingerprints
) -> Manifest:
    checkpoint = prepared.checkpoint
    files = [{"name": p.name, **dataclasses.asdict(FileEntry.of(p))} for p in checkpoint.files]
    features = request.form.item_features and request.form.item_features.name
    return Manifest(
        name=name,
        fingerprint=prints.model,
        model=checkpoint.spec,
        form=prepared.form,
        item_table=_table_layout(prepared),
        profile=_profile(request, prepared),
        source={
            "kind": checkpoint.source,
            "files": files,
            "item_features": features,
            "item_rows": request.form.item_rows,
        },
        versions={"ckv-export": __version__, **_versions()},
        operators={functions.DOMAIN: functions.DOMAIN_VERSION, "opset": functions.OPSET},
        notes=prepared.notes,
        timings={},
        parity=None,
        precision=request.form.precision,
        pool=request.form.pool,
        padding=_prefill(prepared).padding(),
        fingerprints={
            "entries": prints.entries,
            "all but pools": prints.but_pools,
            "looked up": prints.looked_up,
        },
    )


def _prefill(prepared: Prepared) -> PrefillGraph:
    return next(graph for graph in prepared.graphs if isinstance(graph, PrefillGraph))


def _table_layout(prepared: Prepared) -> ItemTable | None:
    for graph in prepared.graphs:
        if isinstance(graph, DecodeItemsGraph):
            assert prepared.form.item_key is not None
            items = item_table.items_of(prepared.checkpoint.spec, prepared.form.item_key)
            return ItemTable(items, *graph.model.key_layout())
    return None


def _profile(request: ExportRequest, prepared: Prepared) -> Profile:
    spec, table = prepared.checkpoint.spec, _table_layout(prepared)
    profile = Profile.default(spec).replaced(spec, dict(request.axes))
    return profile if table is None else profile.with_items(table.items)


def _versions() -> dict[str, str]:
    found = {}
    for package in _RECORDED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

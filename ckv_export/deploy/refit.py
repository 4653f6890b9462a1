"""A retrained model's weights in the engines of the bundle before it."""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from ckv_export.deploy.publish import amended
from ckv_export.engine import load
from ckv_export.engine.loading import BundleEngine
from ckv_export.engine.refit import refit_engine
from ckv_export.engine.targets import require_gpu
from ckv_export.errors import BundleError
from ckv_export.manifest import EngineEntry, FileEntry, Manifest, open_bundle
from ckv_export.stages import Stages

REFIT = "refit"


@dataclass(frozen=True)
class Refitted:
    """The new bundle's manifest, and whether caches made with the old one are still valid."""

    manifest: Manifest
    caches_valid: bool


def refit_bundle(new: Path, old: Path, stages: Stages) -> Refitted:
    """Put every engine of the bundle `old`, with the weights of `new`, into the bundle `new`.

    `new`: an export of the retrained model, without engines. Everything succeeds or `new` is as it
    was. Raises `BundleError` unless the two are exports of one model with ``--pool refit``, and
    `EngineError` without a GPU or as `refit_engine` does.
    """
    with stages.stage("verify hashes"):
        manifest, source = open_bundle(new), open_bundle(old)
    _require_pair(new, manifest, old, source)
    require_gpu(f"refitting the engines of {old}")
    with amended(new) as folder:
        entries = []
        for entry in source.engines:
            with stages.stage(f"refit {entry.file}"):
                entries.append(_refitted(folder, BundleEngine(old, source, entry)))
        manifest = dataclasses.replace(manifest, engines=tuple(entries)).with_files(folder)
        manifest.write(folder)
    valid = manifest.users_fingerprint == source.users_fingerprint
    return Refitted(manifest, valid)


def _require_pair(new: Path, manifest: Manifest, old: Path, source: Manifest) -> None:
    for folder, read in ((new, manifest), (old, source)):
        if read.pool != REFIT:
            raise BundleError(
                f"{folder} was exported with --pool {read.pool}: only engines of a bundle "
                "exported with --pool refit can be refitted"
            )
    if manifest.engines:
        raise BundleError(f"{new} has engines already: give an export that has none")
    if not source.engines:
        raise BundleError(f"{old} has no engines to refit: run ckv-export build {old}")
    differences = _differences(manifest, source)
    if differences:
        raise BundleError(
            f"{new} differs from {old} in its {', '.join(differences)}, and a refit exchanges "
            f"weights alone: run ckv-export build {new}"
        )
    for entry in source.engines:
        if not entry.settings.get(REFIT):
            raise BundleError(
                f"{old / entry.file} can't be refitted: it was built without --pool refit, or "
                "refitted with TensorRT before 10.14, which writes such an engine for good; run "
                f"ckv-export build {old}"
            )


def _differences(manifest: Manifest, source: Manifest) -> list[str]:
    """What the two bundles' graphs are not alike in, a word or two for each."""
    model, other = manifest.model.to_dict(), source.model.to_dict()
    found = [f"model ({key})" for key in model if model[key] != other[key]]
    names = {
        "form": "form of events",
        "item_table": "item table",
        "precision": "precision",
        "operators": "operators",
    }
    return found + [t for n, t in names.items() if getattr(manifest, n) != getattr(source, n)]


def _refitted(folder: Path, engine: BundleEngine) -> EngineEntry:
    """Write the engine into `folder` with what lies beside it; its entry there."""
    started = time.perf_counter()
    entry = engine.entry
    onnx, out = folder / f"{entry.graph}.onnx", folder / entry.file
    out.parent.mkdir(exist_ok=True)
    again = refit_engine(engine, onnx, load(entry.backend), out)
    library = entry.plugin["file"] if entry.plugin else None
    for name in filter(None, (entry.report, library)):
        shutil.copyfile(engine.folder / name, folder / name)
    settings = {name: value for name, value in entry.settings.items() if name != REFIT}
    return dataclasses.replace(
        entry,
        onnx=FileEntry.of(onnx).sha256,
        seconds=round(time.perf_counter() - started, 3),
        settings=settings | ({REFIT: True} if again else {}),
    )

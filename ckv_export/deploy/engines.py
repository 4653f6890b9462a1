"""Engines into a bundle."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckv_export.contract import Profile
from ckv_export.deploy.profiles import NamedRanges, resolve
from ckv_export.engine import (
    CURRENT,
    Backend,
    BuildRequest,
    BuiltEngine,
    ProgressListener,
    Settings,
    build_engine,
    default_targets,
    parse_targets,
    trtexec_command,
)
from ckv_export.engine.cache import cached_build
from ckv_export.engine.plugins import NONE, PluginRecord
from ckv_export.engine.precision import require_precision
from ckv_export.engine.settings import DEFAULT
from ckv_export.manifest import EngineEntry, FileEntry, Manifest
from ckv_export.stages import Stages

FOLDER = "engines"

Display = Callable[[], AbstractContextManager[ProgressListener]]


@dataclass(frozen=True)
class EngineOptions:
    """How to build: library, GPU generations (none: the library's default), shapes and limits.

    `profiles`: ranges that replace some of `profile`, one set an optimization profile; `cache`:
    folder of engines that were built before.
    """

    backend: Backend
    targets: tuple[str, ...] = ()
    profile: Profile | None = None
    workspace_mib: int | None = None
    optimization_level: int | None = None
    settings: Settings = DEFAULT
    profiles: tuple[NamedRanges, ...] = ()
    cache: Path | None = None

    @property
    def caches(self) -> tuple[Path | None, ...]:
        """What a build reads and adds to."""
        return self.cache, self.settings.timing_cache

    def shapes(self, manifest: Manifest) -> tuple[Profile, ...]:
        """Every optimization profile; raises `InputError` for one that nobody fits."""
        return resolve(self.profiles, self.profile or manifest.profile, manifest)

    def settings_for(self, pool: str) -> Settings:
        """The settings for a bundle exported with ``--pool`` `pool`.

        Raises `EngineError` where the library can't build with them here.
        """
        settings = dataclasses.replace(self.settings, refit=pool == "refit")
        settings.require_supported(self.backend)
        return settings

    def request(self, folder: Path, manifest: Manifest, graph: str) -> BuildRequest:
        """What to ask the engine room for; raises as `shapes` and `settings_for`."""
        profiles = self.shapes(manifest)
        return BuildRequest(
            folder / f"{graph}.onnx",
            manifest.graph(graph),
            profiles[0],
            self.targets or default_targets(self.backend),
            self.workspace_mib,
            self.optimization_level,
            self.settings_for(manifest.pool),
            profiles[1:],
        )

    def file(self, graph: str) -> str:
        """The engine's path in a bundle: graph, library, targets and plugin tell engines apart.

        The GPU that is present goes by its generation: there may be another one the next time.
        """
        named = self.targets or default_targets(self.backend)
        present = parse_targets((CURRENT,), self.backend)[0] if CURRENT in named else ""
        targets = "-".join(present if target == CURRENT else target for target in named)
        kind = self.settings.plugin.kind
        names = [graph, self.backend.name, targets, *([] if kind == NONE else [kind])]
        return f"{FOLDER}/{'.'.join(names)}.engine"


def build_engines(
    folder: Path,
    manifest: Manifest,
    options: EngineOptions,
    stages: Stages,
    display: Display,
) -> Manifest:
    """Build an engine of each graph into `folder`; the manifest returned lists them.

    An engine of the same graph, library, targets and kind of plugin is replaced. Beside each lies
    the list of its layers, and with a plugin library that. Raises `EngineError`, also for an engine
    in another precision than the bundle's.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    entries = {engine.file: engine for engine in manifest.engines}
    for graph in manifest.graph_names:
        file = options.file(graph)
        request = options.request(folder, manifest, graph)
        with stages.stage(f"build {graph} engine") as stage, display() as progress:
            built = _build(request, options, folder / file, progress)
            found = ", from the engine cache" if built.cached else ""
            stage.remark = f"{built.layers} layers for {', '.join(built.targets)}{found}"
        if built.report is not None:
            reduced = graph != "prefill" or manifest.model.num_layers > 1
            require_precision(built.report, manifest.precision, reduced, file)
        entries[file] = _entry(folder, graph, file, built)
    _drop_unused_libraries(folder, entries.values())
    return dataclasses.replace(manifest, engines=tuple(entries.values()))


def _build(
    request: BuildRequest, options: EngineOptions, out: Path, progress: ProgressListener
) -> BuiltEngine:
    if options.cache is None:
        return build_engine(request, options.backend, out, progress)
    return cached_build(request, options.backend, out, progress, options.cache)


def _entry(folder: Path, graph: str, file: str, built: BuiltEngine) -> EngineEntry:
    return EngineEntry(
        graph,
        file,
        built.backend,
        built.backend_version,
        built.targets,
        built.profile,
        built.layers,
        round(built.seconds, 3),
        built.pool_step,
        _plugin(folder, built.plugin),
        dict(built.settings),
        _write_report(folder, file, graph, built),
        tuple(built.profiles),
        FileEntry.of(folder / f"{graph}.onnx").sha256,
    )


def _plugin(folder: Path, plugin: PluginRecord | None) -> dict[str, Any] | None:
    """The plugin's record; a library that an engine needs beside it comes into the bundle."""
    if plugin is None:
        return None
    file = None
    if plugin.source is not None and not plugin.carried:
        file = f"{FOLDER}/{plugin.source.stem}.{plugin.sha256[:12]}{plugin.source.suffix}"
        if not (folder / file).exists():
            shutil.copyfile(plugin.source, folder / file)
    return plugin.to_dict() | {"file": file}


def _write_report(folder: Path, file: str, graph: str, built: BuiltEngine) -> str:
    if built.report is None:
        return ""
    name = str(Path(file).with_suffix(".layers.json"))
    data = {
        "graph": graph,
        "backend": built.backend,
        "backend_version": built.backend_version,
        **built.report.to_dict(),
    }
    # Never into the file that is there: a copy of the bundle may share it.
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(json.dumps(data, indent=1) + "\n")
    return name


def _drop_unused_libraries(folder: Path, entries: Iterable[EngineEntry]) -> None:
    used = {entry.plugin["file"] for entry in entries if entry.plugin}
    for library in (folder / FOLDER).glob("*.so"):
        if library.relative_to(folder).as_posix() not in used:
            library.unlink()


def equivalent_commands(folder: Path, manifest: Manifest, options: EngineOptions) -> list[str]:
    """The library's own command line for each engine."""
    return [
        trtexec_command(
            options.request(folder, manifest, graph), options.backend, folder / options.file(graph)
        )
        for graph in manifest.graph_names
    ]

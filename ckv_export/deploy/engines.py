"""Engines into a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from ckv_export.contract import Profile
from ckv_export.engine import (
    Backend,
    BuildRequest,
    BuiltEngine,
    ProgressListener,
    build_engine,
    default_targets,
    trtexec_command,
)
from ckv_export.manifest import EngineEntry, Manifest
from ckv_export.stages import Stages

FOLDER = "engines"

Display = Callable[[], AbstractContextManager[ProgressListener]]


@dataclass(frozen=True)
class EngineOptions:
    """How to build: library, GPU generations (none: the library's default), shapes and limits."""

    backend: Backend
    targets: tuple[str, ...] = ()
    profile: Profile | None = None
    workspace_mib: int | None = None
    optimization_level: int | None = None

    def request(self, folder: Path, manifest: Manifest, graph: str) -> BuildRequest:
        """What to ask the engine room for."""
        return BuildRequest(
            folder / f"{graph}.onnx",
            manifest.graph(graph),
            self.profile or manifest.profile,
            self.targets or default_targets(self.backend),
            self.workspace_mib,
            self.optimization_level,
        )

    def file(self, graph: str) -> str:
        """The engine's path in a bundle: graph, library and targets tell engines apart."""
        targets = "-".join(self.targets or default_targets(self.backend))
        return f"{FOLDER}/{graph}.{self.backend.name}.{targets}.engine"


def build_engines(
    folder: Path,
    manifest: Manifest,
    options: EngineOptions,
    stages: Stages,
    display: Display,
) -> Manifest:
    """Build an engine of each graph into `folder`; the manifest returned lists them.

    An engine of the same graph, library and targets is replaced. Raises `EngineError`.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    entries = {engine.file: engine for engine in manifest.engines}
    for graph in manifest.graph_names:
        file = options.file(graph)
        request = options.request(folder, manifest, graph)
        with stages.stage(f"build {graph} engine") as stage, display() as progress:
            built = build_engine(request, options.backend, folder / file, progress)
            stage.remark = f"{built.layers} layers for {', '.join(built.targets)}"
        entries[file] = _entry(graph, file, built)
    return dataclasses.replace(manifest, engines=tuple(entries.values()))


def _entry(graph: str, file: str, built: BuiltEngine) -> EngineEntry:
    return EngineEntry(
        graph,
        file,
        built.backend,
        built.backend_version,
        built.targets,
        built.profile,
        built.layers,
        round(built.seconds, 3),
    )


def equivalent_commands(folder: Path, manifest: Manifest, options: EngineOptions) -> list[str]:
    """The library's own command line for each engine."""
    return [
        trtexec_command(
            options.request(folder, manifest, graph), options.backend, folder / options.file(graph)
        )
        for graph in manifest.graph_names
    ]

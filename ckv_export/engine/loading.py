"""Whether a bundle's engine can run here, asked before TensorRT gets to see its bytes.

TensorRT's own answer to an engine of another version, GPU or plugin is an error code at best. Every
mismatch found here is a sentence with the command that mends it.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from ckv_export.engine import plugin_library
from ckv_export.engine.backends import Backend
from ckv_export.engine.plugin_build import OPERATOR_VERSION
from ckv_export.engine.plugin_library import PluginLibrary
from ckv_export.engine.plugins import EMBEDDED, LIBRARY
from ckv_export.engine.settings import BUILD_FLAGS
from ckv_export.engine.targets import CURRENT, present_gpu
from ckv_export.errors import EngineError
from ckv_export.manifest import EngineEntry, FileEntry, Manifest


def built_for(entry: EngineEntry, gpu: str) -> bool:
    """Whether an engine was built to run on the GPU generation `gpu`, ``sm86``."""
    from_ampere_on = bool(entry.settings.get("hardware_compatible")) and int(gpu[2:]) >= 80
    return gpu in entry.targets or from_ampere_on


@dataclass(frozen=True)
class BundleEngine:
    """An engine with all that its bundle's manifest says of it."""

    folder: Path
    manifest: Manifest
    entry: EngineEntry

    @property
    def path(self) -> Path:
        """The engine's file."""
        return self.folder / self.entry.file

    @property
    def graph_file(self) -> Path:
        """The ONNX file that it was built from."""
        return self.folder / f"{self.entry.graph}.onnx"

    @property
    def host_code(self) -> bool:
        """Whether the engine holds code for the host: a lean runtime, or a plugin library."""
        return bool(self.entry.settings.get("version_compatible"))

    def prepare(self, backend: Backend) -> None:
        """Check everything, and load the plugin library that the engine needs.

        Raises `EngineError` for an engine that is damaged, of another graph, version, GPU or
        plugin; its sentence names the command that helps.
        """
        self._require_file()
        self._require_graph()
        self._require_version(backend)
        self._require_gpu(backend)
        self._load_plugin(backend)

    def build_command(self, backend: Backend) -> str:
        """The command that builds this engine anew, for this machine."""
        words = ["ckv-export", "build", str(self.folder), f"--backend={backend.name}"]
        words += [] if backend.is_rtx else [f"--target={CURRENT}"]
        flags = [name for name in BUILD_FLAGS if self.entry.settings.get(name)]
        words += [f"--{name.replace('_', '-')}" for name in flags]
        kind = self.entry.plugin["kind"] if self.entry.plugin else None
        words += ["--plugin-library=DIR"] if kind == LIBRARY else []
        words += [f"--plugin={EMBEDDED}"] if kind == EMBEDDED else []
        return shlex.join(words)

    def _require_file(self) -> None:
        if not self.path.is_file():
            raise EngineError(f"the bundle {self.folder} lacks its engine {self.entry.file}")
        if FileEntry.of(self.path) != self.manifest.files.get(self.entry.file):
            raise EngineError(
                f"{self.path} is not the engine that was built, its hash differs: restore the "
                "file, or export the bundle again (ckv-export export --build --force)"
            )

    def _require_graph(self) -> None:
        graph = self.manifest.files.get(f"{self.entry.graph}.onnx")
        if self.entry.onnx and (graph is None or graph.sha256 != self.entry.onnx):
            raise EngineError(
                f"{self.path} was built from another {self.entry.graph}.onnx than that of "
                f"{self.folder}: run ckv-export build {self.folder}"
            )

    def _require_version(self, backend: Backend) -> None:
        entry = self.entry
        if entry.backend != backend.name:
            raise EngineError(
                f"{self.path} was built with {entry.backend} {entry.backend_version}, and "
                f"{backend.label} can't run it: run {self.build_command(backend)}"
            )
        built, here = _numbers(entry.backend_version), _numbers(backend.version)
        if not (built == here or (self.host_code and built < here)):
            raise EngineError(
                f"{self.path} was built with version {entry.backend_version} of {backend.name}, "
                f"here is {backend.version}: install {backend.name}=={entry.backend_version}, or "
                f"run {self.build_command(backend)}"
            )

    def _require_gpu(self, backend: Backend) -> None:
        gpu, targets = present_gpu(), self.entry.targets
        if gpu is None:
            raise EngineError(
                f"{self.path} is for {', '.join(targets)}, and there is no GPU here that torch can "
                "use"
            )
        if not built_for(self.entry, gpu):
            raise EngineError(
                f"{self.path} was built for {', '.join(targets)}, the GPU here is {gpu}: run "
                f"{self.build_command(backend)}" + (f" --target={gpu}" if backend.is_rtx else "")
            )

    def _load_plugin(self, backend: Backend) -> None:
        plugin = self.entry.plugin
        if plugin is None or plugin["carried"]:
            return
        again = f"run {self.build_command(backend)}"
        if plugin["operator_version"] != OPERATOR_VERSION:
            raise EngineError(
                f"{self.path} needs version {plugin['operator_version']} of the operators, this "
                f"ckv-export has version {OPERATOR_VERSION}: {again}"
            )
        library = self.folder / str(plugin["file"])
        if not library.is_file():
            raise EngineError(f"{self.path} needs the plugin library {library}: {again}")
        if FileEntry.of(library).sha256 != plugin["sha256"]:
            raise EngineError(
                f"{library} is not the plugin library that {self.entry.file} was built with, its "
                f"hash differs: {again}"
            )
        targets = tuple(plugin["targets"])
        plugin_library.load(
            PluginLibrary(library, plugin["sha256"], OPERATOR_VERSION, plugin["tensorrt"], targets),
            backend,
        )


def _numbers(version: str) -> tuple[int, ...]:
    """Major, minor and patch: engines are for exactly one of these."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])

"""The folders and files of a model repository."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ckv_export.cache.item_table import load_item_table
from ckv_export.cache.pool_file import load_pools
from ckv_export.cache.record import RecordLayout, kept_events
from ckv_export.contract import GraphSpec
from ckv_export.errors import BundleError, InputError
from ckv_export.manifest import FILE_NAME as MANIFEST
from ckv_export.manifest import EngineEntry, Manifest
from ckv_export.serving import request_tensors
from ckv_export.store import check_address
from ckv_export.triton import config
from ckv_export.triton.config import GraphModel, ScorerModel
from ckv_export.triton.constants import bake, without_constants
from ckv_export.triton.library import library_files
from ckv_export.triton.settings import BUNDLE, STORE_VARIABLE, Settings

LAUNCHER = "launch.sh"
_KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": 1 << 25, "MALLOC_TRIM_THRESHOLD_": 1 << 28}
"""Environment of the server, bytes; 32 MiB is the most that glibc takes for the first."""
PLATFORMS = ("onnx", "tensorrt", "in-process")
_PLAIN = "A-Za-z0-9._+=@%:,-"
"""What may stand in a model's path: Triton's Python backend puts it into a shell's command as it
is, and its Python takes ASCII alone."""
_NOT_PLAIN = (
    "Triton's Python backend starts no model with a blank, an accent or a shell's signs in its path"
)
_VERSION = "1"
_MODEL = '''\
"""Written by ckv-export: the orchestrating model, from the copy of its library beside this."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "library"))

from ckv_export.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class RepositoryOptions:
    """What kind of repository.

    `platform`: who runs the graphs: "onnx" or "tensorrt", Triton's own backends, or "in-process",
    ONNX Runtime within the orchestrating model, for a server that has only the Python backend.
    `plugin`: self-registering plugin library for TensorRT plans. `instances`: processes of the
    orchestrating model. `delay`: microseconds that a request waits for others.
    """

    store: str
    platform: str = "onnx"
    user_dtype: str = "float16"
    max_events: int | None = None
    instances: int = 1
    delay: int = 1000
    threads: int = 1
    plugin: Path | None = None


def write_repository(
    bundle: Path, manifest: Manifest, options: RepositoryOptions, out: Path
) -> list[str]:
    """Fill the empty folder `out`; returns the names of the models, the orchestrating one first.

    Raises `InputError` for options that don't go together, `BundleError` where the bundle lacks
    what they ask for.
    """
    if options.platform not in PLATFORMS:
        raise InputError(
            f"the platform must be one of {', '.join(PLATFORMS)}, got {options.platform!r}"
        )
    if not re.fullmatch(f"[{_PLAIN}]+", manifest.name):
        raise BundleError(
            f"the bundle is {manifest.name!r}, and {_NOT_PLAIN}: export it with another --name"
        )
    check_address(options.store)
    kept_events(RecordLayout.of(manifest, options.user_dtype), manifest, options.max_events)
    if options.plugin is not None and options.platform != "tensorrt":
        raise InputError("a plugin library is for --platform tensorrt only")
    if options.platform == "in-process" and manifest.precision == "bf16":
        raise InputError(
            "in-process the graphs run on a CPU, for which ONNX Runtime has no products of bf16 "
            "numbers: choose --platform onnx or tensorrt, or export with --precision fp16 or fp32"
        )
    writer = _Writer(bundle, manifest, options, out)
    names = [writer.scorer()]
    if options.platform != "in-process":
        names += [writer.graph("prefill", "prefill"), writer.graph("decode", writer.decode)]
    writer.launcher()
    return names


@dataclass(frozen=True)
class _Writer:
    bundle: Path
    manifest: Manifest
    options: RepositoryOptions
    out: Path

    @property
    def decode(self) -> str:
        """The graph that answers requests."""
        return "decode_items" if self.manifest.item_table else "decode"

    def scorer(self) -> str:
        name, version = self.manifest.name, self.out / self.manifest.name / _VERSION
        (version / BUNDLE).mkdir(parents=True)
        shutil.copyfile(self.bundle / MANIFEST, version / BUNDLE / MANIFEST)
        for path, text in library_files().items():
            (version / "library" / path).parent.mkdir(parents=True, exist_ok=True)
            (version / "library" / path).write_text(text)
        (version / "model.py").write_text(_MODEL)
        own = self.options.platform == "in-process"
        if own:
            self._onnx(self.decode, version / BUNDLE / f"{self.decode}.onnx")
        settings = Settings(
            self.options.store,
            self.decode,
            None if own else f"{name}_decode",
            self.options.user_dtype,
            self.options.max_events,
            self.options.threads,
        )
        text = config.scorer_config(
            ScorerModel(
                name,
                request_tensors(self.manifest, self.decode),
                self.manifest.profile.axes["B"].max,
                settings.parameters(),
                self.options.instances,
                self.options.delay,
            )
        )
        (version.parent / config.FILE_NAME).write_text(text)
        return name

    def graph(self, role: str, graph: str) -> str:
        name = f"{self.manifest.name}_{role}"
        version = self.out / name / _VERSION
        version.mkdir(parents=True)
        plans = self._plans(graph, version) if self.options.platform == "tensorrt" else None
        if plans is None:
            self._onnx(graph, version / "model.onnx")
        sizes = {axis: r.opt for axis, r in self.manifest.profile.axes.items()}
        model = GraphModel(
            name,
            self._io(graph),
            self.options.platform,
            self.manifest.profile.axes["B"].max,
            sizes,
            plans=plans,
        )
        (version.parent / config.FILE_NAME).write_text(config.graph_config(model))
        return name

    def _io(self, graph: str) -> GraphSpec:
        io = self.manifest.graph(graph)
        return without_constants(io)

    def _onnx(self, graph: str, out: Path) -> None:
        """The graph at `out`, with what it refers to beside it."""
        constants = load_pools(self.bundle, self.manifest)
        if graph == "decode_items":
            constants |= load_item_table(self.bundle)
        if without_constants(io := self.manifest.graph(graph)) != io:
            bake(self.bundle / f"{graph}.onnx", constants, out)
        else:
            shutil.copyfile(self.bundle / f"{graph}.onnx", out)
        for name in self.manifest.files:
            if name.endswith(".bin"):
                shutil.copyfile(self.bundle / name, out.parent / name)

    def _plans(self, graph: str, version: Path) -> dict[str, str]:
        """Copy the graph's engines; their files by compute capability."""
        if without_constants(io := self.manifest.graph(graph)) != io:
            raise BundleError(
                "an item table, or a pool that is no constant, is an input of the engine, and "
                "Triton's TensorRT backend batches every input: serve such a bundle with "
                "--platform onnx"
            )
        engines = [e for e in self.manifest.engines if _serves(e, graph)]
        if not engines:
            raise BundleError(
                f"the bundle {self.bundle} has no engine of {graph} for TensorRT: run "
                f"ckv-export build {self.bundle} --backend tensorrt"
            )
        plans: dict[str, str] = {}
        for position, engine in enumerate(engines):
            file = "model.plan" if position == 0 else f"model_{position}.plan"
            shutil.copyfile(self.bundle / engine.file, version / file)
            plans |= {capability(target): file for target in engine.targets}
        return plans

    def launcher(self) -> None:
        """A script that starts the server, with the plugin where there is one."""
        arguments = ['--model-repository="$repository"']
        if self.options.plugin is not None:
            folder = f"{self.manifest.name}_decode"
            shutil.copyfile(self.options.plugin, self.out / folder / self.options.plugin.name)
            arguments.append(
                f'--backend-config=tensorrt,plugins="$repository/{folder}/'
                f'{self.options.plugin.name}"'
            )
        script = self.out / LAUNCHER
        script.write_text("\n".join(_launcher_lines(arguments)) + "\n")
        script.chmod(0o755)


def _launcher_lines(arguments: list[str]) -> Iterator[str]:
    yield "#!/usr/bin/env bash"
    yield "# Starts Triton on this repository; further options are passed on to tritonserver."
    yield f"# {STORE_VARIABLE} replaces the address of the user store that config.pbtxt names."
    yield "# Memory that was freed stays with the server: glibc would hand the arrays of a batch to"
    yield "# the system, and every page of the next ones would be a fault."
    yield "set -euo pipefail"
    for name, size in _KEPT_MEMORY.items():
        yield f'export {name}="${{{name}:-{size}}}"'
    yield 'repository="$(cd "$(dirname "$0")" && pwd)"'
    yield "shopt -s globasciiranges"
    yield f'if [[ "$repository" == *[!/{_PLAIN}]* ]]; then'
    yield f'  echo "{LAUNCHER}: error: {_NOT_PLAIN}: move $repository" >&2'
    yield "  exit 2"
    yield "fi"
    yield f'exec tritonserver {" ".join(arguments)} "$@"'


def _serves(engine: EngineEntry, graph: str) -> bool:
    return engine.graph == graph and engine.backend == "tensorrt"


def capability(target: str) -> str:
    """Compute capability as Triton writes it: "8.6" for "sm86"; raises `BundleError`."""
    digits = target.removeprefix("sm")
    if not (target.startswith("sm") and digits.isdecimal() and len(digits) >= 2):
        raise BundleError(f"an engine for {target!r} names no compute capability such as sm86")
    return f"{digits[:-1]}.{digits[-1]}"

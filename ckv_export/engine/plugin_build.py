"""The plugin libraries from their sources: CMake configures and builds, we pick up the result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckv_export.errors import EngineError

RECORD = "plugins.json"
SCHEMA_VERSION = 1
OPERATOR_VERSION = "1"

Listener = Callable[[str], None]


@dataclass(frozen=True)
class PluginBuild:
    """What to build: the folder of the sources, GPU generations (none: all), TensorRT's folder."""

    source: Path
    targets: tuple[str, ...] = ()
    tensorrt_root: Path | None = None

    def __post_init__(self) -> None:
        for target in self.targets:
            if not re.fullmatch(r"sm\d{2,3}", target):
                raise EngineError(
                    f"a plugin target is a GPU generation such as sm86, got {target!r}"
                )

    def configure_command(self, folder: Path) -> list[str]:
        """CMake's command line; PTX of the newest target serves generations to come."""
        command = ["cmake", "-S", str(self.source), "-B", str(folder), "-DCKV_TESTS=OFF"]
        if self.targets:
            numbers = sorted(int(target[2:]) for target in self.targets)
            names = [*(f"{n}-real" for n in numbers[:-1]), str(numbers[-1])]
            command.append(f"-DCKV_CUDA_TARGETS={';'.join(names)}")
        if self.tensorrt_root is not None:
            command.append(f"-DTensorRT_ROOT={self.tensorrt_root}")
        return command


@dataclass(frozen=True)
class BuiltPlugins:
    """The libraries in `folder`: version of the operators, TensorRT, targets, SHA-256 of each."""

    folder: Path
    operator_version: str
    tensorrt: str
    targets: tuple[str, ...]
    files: dict[str, str]

    def to_dict(self) -> dict[str, object]:
        """Plain JSON data, without the folder."""
        data = dataclasses.asdict(self)
        del data["folder"]
        return {"schema_version": SCHEMA_VERSION, **data}


def default_source() -> Path:
    """``plugins/`` of the repository that this package is installed from, in place."""
    return Path(__file__).resolve().parents[2] / "plugins"


def build_plugins(build: PluginBuild, out: Path, listener: Listener) -> BuiltPlugins:
    """Build the libraries and put them with `RECORD` into `out`; `listener` gets CMake's lines.

    Raises `EngineError` where the sources, CMake, nvcc or TensorRT's headers are missing, and with
    the first error of a compiler. `out` changes only once everything is built.
    """
    if not (build.source / "CMakeLists.txt").is_file():
        raise EngineError(
            f"{build.source} holds no plugin sources: give --source, plugins/ of a clone"
        )
    for tool in ("cmake", "nvcc"):
        if shutil.which(tool) is None:
            raise EngineError(f"building plugins needs {tool}, which is not on the PATH")
    with tempfile.TemporaryDirectory(prefix="ckv-plugins-") as scratch:
        folder = Path(scratch)
        lines = _run(build.configure_command(folder), listener)
        version = _tensorrt_version(lines)
        _check_headers(build.tensorrt_root, folder)
        _run(["cmake", "--build", str(folder), "--parallel", "2"], listener)
        libraries = sorted(folder.glob("libckv_plugins*.so"))
        targets = _cached_targets(folder)
        return _publish(libraries, out, version, targets)


def _tensorrt_version(lines: Sequence[str]) -> str:
    for line in lines:
        if found := re.search(r"plugins for TensorRT (\S+)", line):
            return found[1]
    raise EngineError(
        "TensorRT's headers were not found: give --tensorrt-root, a folder that has "
        "include/NvInferRuntime.h"
    )


def _check_headers(root: Path | None, folder: Path) -> None:
    """Headers that CMake found elsewhere may be of another TensorRT than the one asked for."""
    found = _cached(folder, "TensorRT_INCLUDE_DIR")
    if root is None or not found:
        return
    headers = Path(found)
    if headers.is_relative_to(root.absolute()) or headers.resolve().is_relative_to(root.resolve()):
        return
    raise EngineError(
        f"--tensorrt-root {root} has no TensorRT headers, {found} has: give a folder that has "
        "include/NvInferRuntime.h, or leave the option out"
    )


def _cached_targets(folder: Path) -> tuple[str, ...]:
    """The targets that CMake took."""
    names = _cached(folder, "CKV_CUDA_TARGETS").split(";")
    return tuple(f"sm{name.removesuffix('-real')}" for name in names if name)


def _cached(folder: Path, name: str) -> str:
    """A variable of CMake's cache, "" if it isn't there."""
    cache = (folder / "CMakeCache.txt").read_text()
    found = re.search(rf"^{name}:\w+=(.*)$", cache, re.MULTILINE)
    return found[1] if found else ""


def _run(command: Sequence[str], listener: Listener) -> list[str]:
    """Run a command; raises `EngineError` with its first error line."""
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                listener(lines[-1])
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        told = lines or ["no message"]
        error = next((line for line in told if re.search(r"\berror\b", line, re.I)), told[-1])
        raise EngineError(f"{command[0]} failed: {error.strip()}")
    return lines


def _publish(
    libraries: Sequence[Path], out: Path, version: str, targets: tuple[str, ...]
) -> BuiltPlugins:
    hashes = {lib.name: hashlib.sha256(lib.read_bytes()).hexdigest() for lib in libraries}
    built = BuiltPlugins(out, OPERATOR_VERSION, version, targets, hashes)
    out.mkdir(parents=True, exist_ok=True)
    for library in libraries:
        beside = out / f".{library.name}.partial"
        shutil.copyfile(library, beside)
        beside.chmod(0o755)
        beside.replace(out / library.name)
    record = out / f".{RECORD}.partial"
    record.write_text(json.dumps(built.to_dict(), indent=1) + "\n")
    record.replace(out / RECORD)
    return built

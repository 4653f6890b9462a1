"""The plugin library: read with the record that was made with it, loaded once a process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckv_export.engine.backends import Backend
from ckv_export.engine.messages import listen
from ckv_export.engine.plugin_build import OPERATOR_VERSION, RECORD, SCHEMA_VERSION
from ckv_export.errors import EngineError
from ckv_export.manifest import FileEntry

_REBUILD = "build it with `ckv-export plugin build`"

_loaded: dict[str, str] = {}
"""Hash -> file of the libraries loaded; they stay, for plugins' code must outlive their engines."""


@dataclass(frozen=True)
class PluginLibrary:
    """A library with what its record says: operators' version, TensorRT and GPU generations."""

    path: Path
    sha256: str
    operator_version: str
    tensorrt: str
    targets: tuple[str, ...]


def read(path: Path, backend: Backend, gpus: tuple[str, ...]) -> PluginLibrary:
    """The library at `path` (or of the folder `path`), fit for `backend` and all `gpus`.

    Raises `EngineError` where there is none, where its record is missing or is of other bytes, and
    where TensorRT's major version, the operators' version or the GPU code does not fit: a library
    of another major would crash, not complain.
    """
    file = library_file(path, backend)
    record = _record(file)
    if file.name not in record["files"]:
        raise EngineError(f"{file.parent / RECORD} does not list {file.name}: {_REBUILD}")
    library = PluginLibrary(
        file,
        FileEntry.of(file).sha256,
        record["operator_version"],
        record["tensorrt"],
        tuple(record["targets"]),
    )
    _check(library, record["files"][file.name], backend, gpus)
    return library


def load(library: PluginLibrary, backend: Backend) -> None:
    """Load the library into the registry of `backend`; does nothing if it is loaded.

    Raises `EngineError` where another one is, or where the registry refuses it.
    """
    if library.sha256 in _loaded:
        return
    if _loaded:
        other = next(iter(_loaded.values()))
        raise EngineError(
            f"this process has loaded the plugin library {other}, and can't load {library.path} "
            "beside it: use a process of its own"
        )
    with listen(backend) as (_, messages):
        registry = backend.module.get_plugin_registry()
        if registry.load_library(str(library.path.resolve())) is None:
            reason = messages.first_error() or "the registry gives no reason"
            raise EngineError(
                f"{backend.label} can't load the plugin library {library.path}: {reason}"
            )
    _loaded[library.sha256] = str(library.path)


def loaded() -> bool:
    """Whether this process has loaded a library."""
    return bool(_loaded)


def runs_on(targets: tuple[str, ...], gpu: str) -> bool:
    """Whether code for `targets` runs on the generation `gpu`.

    Machine code runs on later minor versions of its major; the newest target has PTX too, which
    runs on everything later.
    """
    number = int(gpu[2:])
    compiled = [int(target[2:]) for target in targets]
    same_major = any(t // 10 == number // 10 and t <= number for t in compiled)
    return same_major or (bool(compiled) and max(compiled) <= number)


def library_file(path: Path, backend: Backend) -> Path:
    """The library at `path`, or that for `backend` in the folder `path`; raises `EngineError`."""
    major = backend.version.split(".")[0]
    file = path / f"libckv_plugins_trt{major}.so" if path.is_dir() else path
    if not file.is_file():
        raise EngineError(f"there is no plugin library {file}: {_REBUILD}")
    if "registering" in file.name:
        raise EngineError(
            f"{file.name} registers itself and is for Triton and LD_PRELOAD: give "
            f"libckv_plugins_trt{major}.so"
        )
    return file


def _record(file: Path) -> dict[str, Any]:
    path = file.parent / RECORD
    if not path.is_file():
        raise EngineError(
            f"{file} has no {RECORD} beside it, which says what it was built for: {_REBUILD}"
        )
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        fields = {name: record[name] for name in _KINDS}
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{path} is no record of plugins: {error!r}") from error
    odd = [name for name, kind in _KINDS.items() if not isinstance(fields[name], kind)]
    if odd or record["schema_version"] != SCHEMA_VERSION:
        raise EngineError(f"{path} is no record that this ckv-export reads: {_REBUILD}")
    return record


_KINDS = {
    "schema_version": int,
    "operator_version": str,
    "tensorrt": str,
    "targets": list,
    "files": dict,
}


def _check(library: PluginLibrary, recorded: str, backend: Backend, gpus: tuple[str, ...]) -> None:
    if recorded != library.sha256:
        raise EngineError(f"{library.path} is not the library that {RECORD} records: {_REBUILD}")
    if library.operator_version != OPERATOR_VERSION:
        raise EngineError(
            f"{library.path} has version {library.operator_version} of the operators, this "
            f"ckv-export exports version {OPERATOR_VERSION}: {_REBUILD}"
        )
    majors = [version.split(".")[0] for version in (library.tensorrt, backend.version)]
    if majors[0] != majors[1]:
        raise EngineError(
            f"{library.path} was built for TensorRT {library.tensorrt} and {backend.label} can't "
            f"load it: {_REBUILD} --tensorrt-root a TensorRT {majors[1]}"
        )
    missing = [g for g in gpus if not runs_on(library.targets, g)]
    if missing:
        raise EngineError(
            f"{library.path} has code for {', '.join(library.targets)}, not for "
            f"{', '.join(missing)}: {_REBUILD} --target {missing[0]}"
        )

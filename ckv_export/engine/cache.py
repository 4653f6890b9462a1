"""Engines that were built before: found by what they were built from.

An entry's name is a hash over everything that decides what is built: the ONNX file with its
weights, shapes, flags, plugin, library, GPU. Its engine is copied, and verified, in the place of a
build.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ckv_export.engine import plugins
from ckv_export.engine.backends import Backend
from ckv_export.engine.build import BuildRequest, BuiltEngine, build_engine
from ckv_export.engine.files import beside, is_there, read_onnx
from ckv_export.engine.profiles import input_shapes
from ckv_export.engine.progress import ProgressListener
from ckv_export.engine.targets import parse_targets, present_gpu_name
from ckv_export.errors import EngineError, reason
from ckv_export.manifest import FileEntry

LAYOUT = 1
"""Counts changes of what an entry holds, and of how this program builds from the same request."""

_ENGINE, _RECORD = "engine", "built.json"


def require_place(cache: Path) -> None:
    """Raise `EngineError` where no engine could be kept in `cache`: known before one is built."""
    try:
        there = next(p for p in (cache, *cache.absolute().parents) if is_there(p))
    except OSError as error:
        raise EngineError(f"can't write to the engine cache {cache}: {reason(error)}") from error
    if not there.is_dir():
        raise EngineError(f"can't write to the engine cache {cache}: {there} is no folder")
    if not os.access(there, os.W_OK):
        raise EngineError(f"can't write to the engine cache {cache}: {there} is read-only")


def cached_build(
    request: BuildRequest,
    backend: Backend,
    out: Path,
    progress: ProgressListener | None,
    cache: Path,
) -> BuiltEngine:
    """As `build_engine`, from the folder `cache` where the same was built before.

    A damaged entry is built again. Raises `EngineError` as `build_engine` does, and where the
    cache can't be written.
    """
    started = time.perf_counter()
    entry = cache / key_of(request, backend)
    found = _read(entry)
    if found is not None:
        with beside(out) as temporary:
            shutil.copyfile(entry / _ENGINE, temporary)
        plugin = plugins.found_again(found.plugin, request.settings.plugin, backend)
        seconds = time.perf_counter() - started
        return dataclasses.replace(found, path=out, seconds=seconds, plugin=plugin, cached=True)
    built = build_engine(request, backend, out, progress)
    try:
        _write(entry, built)
    except OSError as error:
        raise EngineError(f"can't write to the engine cache {cache}: {reason(error)}") from error
    return built


def key_of(request: BuildRequest, backend: Backend) -> str:
    """Name of the entry of what `request` would build with `backend`."""
    settings = request.settings
    targets = parse_targets(request.targets, backend)
    facts = {
        "layout": LAYOUT,
        "onnx": [FileEntry.of(path).sha256 for path in _onnx_files(request.onnx)],
        "graph": dataclasses.asdict(request.tensors),
        "profiles": [input_shapes(request.tensors, p) for p in request.profiles],
        "limits": [request.workspace_mib, request.optimization_level],
        "settings": dict(settings.recorded()),
        "plugin": plugins.identity(settings.plugin, backend, settings.code_targets(targets)),
        "backend": [backend.name, backend.version],
        "targets": targets,
        # The full TensorRT chooses kernels by timing them on this very GPU.
        "gpu": None if backend.is_rtx else present_gpu_name(),
    }
    return _hash(json.dumps(facts, sort_keys=True))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _onnx_files(onnx_file: Path) -> Iterable[Path]:
    """The file itself, then those that hold its weights."""
    # Imported late: whoever loads engines needs no onnx.
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    if not onnx_file.is_file():
        raise EngineError(f"there is no ONNX file {onnx_file}")
    tensors = filter(uses_external_data, read_onnx(onnx_file).graph.initializer)
    names = dict.fromkeys(ExternalDataInfo(tensor).location for tensor in tensors)
    files = [onnx_file, *(onnx_file.parent / name for name in names)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise EngineError(f"{onnx_file} lacks its weights {missing[0]}")
    return files


def _read(entry: Path) -> BuiltEngine | None:
    """What was built, if engine and record are those that were written."""
    try:
        digest, _, text = (entry / _RECORD).read_text().partition("\n")
        data: dict[str, Any] = json.loads(text)
        engine = FileEntry.of(entry / _ENGINE).sha256
        whole = digest == _hash(text) and data.pop("sha256") == engine
        return BuiltEngine.from_dict(data) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(entry: Path, built: BuiltEngine) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    record = built.to_dict() | {"sha256": FileEntry.of(built.path).sha256}
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".making-") as scratch:
        made = Path(scratch) / "entry"
        made.mkdir()
        shutil.copyfile(built.path, made / _ENGINE)
        text = json.dumps(record)
        (made / _RECORD).write_text(f"{_hash(text)}\n{text}")
        _move(made, entry)


def _move(made: Path, entry: Path) -> None:
    """Put a new entry in its place; one that another build made meanwhile is as good and stays."""
    if _read(entry) is not None:
        return
    shutil.rmtree(entry, ignore_errors=True)
    try:
        made.rename(entry)
    except OSError:
        if _read(entry) is None:
            raise

"""Any checkpoint: find out what a path is and read it."""

from __future__ import annotations

from pathlib import Path

from ckv_export.checkpoint.fuxictr import load_run_folder
from ckv_export.checkpoint.native import CONFIG, WEIGHTS, load_native_file, load_native_folder
from ckv_export.checkpoint.result import Checkpoint
from ckv_export.checkpoint.run_folder import FEATURE_MAP
from ckv_export.errors import CheckpointError, reason

__all__ = ["Checkpoint", "is_checkpoint", "load_checkpoint"]


def load_checkpoint(
    path: Path, *, weights: str | None = None, params: str | None = None
) -> Checkpoint:
    """Read a checkpoint without executing anything in it.

    `path`: a native file, a native folder (config.json, model.safetensors), a FuxiCTR run
    folder (feature_map.json) or the .model file in one. `weights`, `params`: of a run folder,
    which weights file and which experiment or YAML file, where there are several.
    Weights stay mapped from their file where its format allows. Raises `CheckpointError`,
    one sentence starting with the path.
    """
    try:
        return _load(Path(path), weights, params)
    except OSError as error:  # a folder that may not be listed, a name that is too long
        raise CheckpointError(f"{path}: can't be read: {reason(error)}") from error


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a file, or a folder with a file that tells what model it is of."""
    return path.is_file() or any((path / name).is_file() for name in (CONFIG, FEATURE_MAP))


def _load(path: Path, weights: str | None, params: str | None) -> Checkpoint:
    """Choose the reader."""
    if path.suffix == ".model" and path.is_file():
        if weights is not None:
            raise CheckpointError(f"{path}: this is a weights file already; leave out --weights")
        return load_run_folder(path.parent, path.name, params)
    if (path / FEATURE_MAP).is_file() and not (path / WEIGHTS).is_file():
        return load_run_folder(path, weights, params)
    if not is_checkpoint(path):
        raise CheckpointError(f"{path}: {_what_is_missing(path)}")
    if weights is not None or params is not None:
        raise CheckpointError(f"{path}: --weights and --params are for FuxiCTR run folders only")
    return load_native_file(path) if path.is_file() else load_native_folder(path)


def _what_is_missing(path: Path) -> str:
    if not path.is_dir():
        return "there is no such file or folder"
    files = sorted(p.name for p in path.iterdir() if p.suffix in (".pt", ".model"))
    return (
        f"the folder is no checkpoint: it has neither {CONFIG} and {WEIGHTS}, nor {FEATURE_MAP} "
        "as a FuxiCTR run folder does" + (f"; it has {', '.join(files[:3])}" if files else "")
    )

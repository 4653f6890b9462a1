"""Native checkpoints: one ``model.pt``, or a folder of config.json and model.safetensors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ckv_export.checkpoint.config import read_config
from ckv_export.checkpoint.names import KIND_MARKS
from ckv_export.checkpoint.result import Checkpoint, naming
from ckv_export.checkpoint.tensors import conversion_notes, identity, plain_tensors
from ckv_export.checkpoint.torch_file import read_torch_file
from ckv_export.contract import ModelSpec
from ckv_export.errors import CheckpointError, reason
from ckv_export.model.parameters import check_state

FORMAT = "ckv"
VERSION = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def load_native_file(path: Path) -> Checkpoint:
    """Read what `save_native` wrote to one file.

    Tensors are mapped from the file: don't overwrite it in place while they are in use.
    Raises `CheckpointError` for any other file, whatever it holds; nothing is executed.
    """
    with naming(path):
        data = read_torch_file(path)
        _refuse_bare(data)
        spec = _spec(data)
        if not isinstance(data.get("state_dict"), Mapping):
            raise CheckpointError("the checkpoint has no 'state_dict'")
        return _checked(spec, data["state_dict"], path.stem, (path,))


def load_native_folder(folder: Path) -> Checkpoint:
    """Read the folder form; otherwise as `load_native_file`."""
    config, weights = folder / CONFIG, folder / WEIGHTS
    with naming(folder):
        if not weights.is_file():
            raise CheckpointError(f"the folder has {CONFIG}, but no {WEIGHTS}")
        try:
            data = json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{CONFIG} can't be read: {reason(error)}") from error
        spec = _spec(data)
        state = _read_safetensors(weights)
        return _checked(spec, state, folder.resolve().name, (config, weights))


def save_native(path: Path | str, spec: ModelSpec, state: Mapping[str, Tensor]) -> None:
    """Write a checkpoint: one file where `path` ends in .pt, a folder otherwise.

    The new files are written beside the old ones and renamed when complete, so a failure
    leaves what was there. A tensor under several names is stored once, and is one tensor
    again when loaded. Raises `CheckpointError` if `state` isn't what `spec` needs or the
    files can't be written.
    """
    path = Path(path).resolve()
    with naming(path):
        check_state(spec, state)
        head = {"format": FORMAT, "version": VERSION, "config": spec.to_dict()}
        tensors = _compact(state)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            _write(path, scratch, head, tensors)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors raise their own kinds for a full disk or a missing folder
            raise CheckpointError(f"the checkpoint can't be written: {reason(error)}") from error
        finally:
            _remove(scratch)


def _refuse_bare(data: Any) -> None:
    """Tell a FuxiCTR state dict from a file that is no checkpoint at all."""
    if isinstance(data, Mapping) and any(mark in data for mark in KIND_MARKS):
        raise CheckpointError(
            "this is a bare FuxiCTR state dict, which tells no hyperparameters: give the run "
            "folder (*.model, feature_map.json, model_config.yaml)"
        )


def _spec(data: Any) -> ModelSpec:
    """Check format and version, read the configuration."""
    found = data.get("format") if isinstance(data, Mapping) else None
    if found != FORMAT:
        raise CheckpointError(f"not a native checkpoint: format must be {FORMAT!r}, got {found!r}")
    if data.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint version must be {VERSION}, got {data.get('version')!r}: "
            "a newer ckv-export may read it"
        )
    return read_config(data.get("config"))


def _checked(
    spec: ModelSpec, stored: Mapping[str, Any], name: str, files: tuple[Path, ...]
) -> Checkpoint:
    state = plain_tensors(stored)
    check_state(spec, state)
    return Checkpoint(spec, state, name, "native", conversion_notes(stored), files)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            aliases = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{WEIGHTS} is damaged or no safetensors file: {reason(error)}"
        ) from error
    for name, kept in aliases.items():
        if kept in state:
            state.setdefault(name, state[kept])
    return state


def _compact(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors that own their memory: a slice would drag the whole of its base along."""
    copies: dict[tuple[Any, ...], Tensor] = {}
    result = {}
    for name, given in state.items():
        key = identity(given)
        if key not in copies:
            tensor = given.detach().cpu().contiguous()
            owns = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            copies[key] = tensor if owns else tensor.clone()
        result[name] = copies[key]
    return result


def _write(path: Path, scratch: Path, head: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    if path.suffix == ".pt":
        torch.save(head | {"state_dict": tensors}, scratch)
        scratch.replace(path)
        return
    scratch.mkdir()
    (scratch / CONFIG).write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")
    _save_safetensors(tensors, scratch / WEIGHTS)
    # safetensors keeps its files from other users, whatever the umask says
    (scratch / WEIGHTS).chmod((scratch / CONFIG).stat().st_mode)
    if path.is_dir():
        # each file changes in one step, the two of them do not
        for name in (WEIGHTS, CONFIG):
            (scratch / name).replace(path / name)
    else:
        scratch.replace(path)


def _save_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write each tensor once; the format knows no sharing, so other names go to the metadata."""
    kept: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        first = kept.setdefault(identity(tensor), name)
        if first != name:
            aliases[name] = first
    save_file({n: t for n, t in tensors.items() if n not in aliases}, path, metadata=aliases)


def _remove(scratch: Path) -> None:
    if scratch.is_dir():
        shutil.rmtree(scratch)
    else:
        scratch.unlink(missing_ok=True)

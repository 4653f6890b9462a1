"""Files written by `torch.save`, read without executing anything they hold."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from ckv_export.errors import CheckpointError, reason

ZIP_START = b"PK\x03\x04"
PICKLE_START = b"\x80"


def read_torch_file(path: Path) -> Any:
    """Return what `torch.save` wrote to `path`, on the CPU.

    Tensors of the zip format are mapped from the file, so that they cost no memory of their
    own; the older format is read into memory. Raises `CheckpointError` for anything that is
    no such file: unreadable, truncated, TorchScript, or a pickle of more than tensors and
    plain values, of which nothing is executed.
    """
    start = _first_bytes(path)
    _refuse_truncated(path, start)
    try:
        with warnings.catch_warnings():
            # torch warns about the very pickles and archives that are refused below
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, mmap=start == ZIP_START, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unpickling_message(str(error), start)) from error
    except Exception as error:  # junk makes torch.load raise nearly anything
        raise CheckpointError(_damage_message(str(error))) from error


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(len(ZIP_START))
    except OSError as error:
        raise CheckpointError(f"the file can't be read: {reason(error)}") from error
    if not start:
        raise CheckpointError("the file is empty")
    return start


def _refuse_truncated(path: Path, start: bytes) -> None:
    """Refuse a zip archive without the directory that stands at its end."""
    if start == ZIP_START and not zipfile.is_zipfile(path):
        raise CheckpointError(
            "the file is truncated: its zip archive has no directory at the end; copy it again"
        )


def _unpickling_message(torch_message: str, start: bytes) -> str:
    """Tell a pickle of objects, which could run code, from bytes that are no pickle."""
    found = re.search(r"GLOBAL ([\w.]+)", torch_message)
    if found:
        return (
            f"the file was refused and nothing in it was executed: its pickle asks for "
            f"{found[1]!r}, and only tensors and plain values are read; save a state dict instead"
        )
    if start == ZIP_START or start.startswith(PICKLE_START):
        return (
            "the file was refused and nothing in it was executed: its pickle holds more than "
            "the tensors and plain values of torch.save; save a state dict instead"
        )
    return "the file is not a checkpoint: it was not written by torch.save"


def _damage_message(torch_message: str) -> str:
    if "TorchScript" in torch_message:
        return "the file is a TorchScript archive, not a checkpoint; save a state dict instead"
    return "the file is not a checkpoint, or a damaged one: torch.load can't read it"

"""What loading a checkpoint returns, and how its errors are worded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ckv_export.contract import ModelSpec
from ckv_export.errors import CheckpointError, SpecError


@dataclass(frozen=True)
class Checkpoint:
    """A model as read from disk.

    `state`: CPU tensors under the names that `model.parameters` expects, float32; a tensor
    stored once is held once. `name`: default name of a bundle. `source`: "native" or
    "fuxictr". `notes`: what the user must be told. `files`: the files read.
    """

    spec: ModelSpec
    state: dict[str, torch.Tensor]
    name: str
    source: str
    notes: tuple[str, ...]
    files: tuple[Path, ...]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put `path` in front of a `CheckpointError`; turn a `SpecError` into one as well."""
    try:
        yield
    except (CheckpointError, SpecError) as error:
        raise CheckpointError(f"{path}: {error}") from error

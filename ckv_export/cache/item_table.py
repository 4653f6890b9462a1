"""The item table of a bundle as a file, and what a row of it costs.

For a target-attention model all that decode would cache of an event depends on the item alone. With
a row per item, a user's record shrinks to the ids of the history.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ckv_export.cache.tensor_file import save_tensors
from ckv_export.contract import TensorSpec
from ckv_export.errors import BundleError, reason
from ckv_export.manifest import ITEM_TABLE_FILE as FILE_NAME

Table = Mapping[str, NDArray[np.generic]]


def row_bytes(layout: Sequence[TensorSpec]) -> int:
    """Bytes of one row of a table of these tensors [I, ...]."""
    return sum(math.prod(int(a) for a in t.axes[1:]) * np.dtype(t.dtype).itemsize for t in layout)


def save_item_table(folder: Path, table: Table) -> None:
    """Write `FILE_NAME` into `folder`: safetensors, each tensor [I, ...]; raises `BundleError`."""
    path = folder / FILE_NAME
    try:
        save_tensors(path, table)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"can't write the item table {path}: {reason(error)}") from error


def load_item_table(folder: Path) -> dict[str, NDArray[np.generic]]:
    """Read what `save_item_table` wrote; raises `BundleError`."""
    try:
        return dict(load_file(folder / FILE_NAME))
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{folder / FILE_NAME} is no item table: {reason(error)}") from error

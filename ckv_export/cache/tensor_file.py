"""A safetensors file that others than its writer may read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file


def save_tensors(
    path: Path,
    tensors: Mapping[str, NDArray[np.generic]],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write `tensors` with the permissions of any new file.

    Raises `OSError` or `SafetensorError`.
    """
    # save_file writes the memory behind an array, whatever its strides.
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    # It may put another file in its place, which its owner alone can read.
    save_file(contiguous, path, metadata=metadata)
    path.chmod(mode)

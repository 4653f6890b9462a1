"""Users' bytes in pinned memory of the host, from which a GPU copies by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ckv_export.bench.stored import Blob, Layout, Store
from ckv_export.errors import InputError
from ckv_export.runtimes.base import Array, Arrays, Feed, Placed
from ckv_export.runtimes.torch import device_errors


def require_gpu() -> None:
    """Raise `InputError` where no memory can be pinned."""
    if not torch.cuda.is_available():
        raise InputError(
            "--source pinned needs a GPU to pin memory for, and there is none here that torch "
            f"{torch.__version__} can use: give --source memory or file"
        )


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array in pinned memory."""
    kind: torch.dtype = getattr(torch, dtype.name)
    with device_errors(f"pin {math.prod(shape) * dtype.itemsize} bytes of the host's memory"):
        array: Array = torch.zeros(shape, dtype=kind, pin_memory=True).numpy()
    return array


class PinnedStore(Store):
    """Users' bytes in pinned memory, read where they lie."""

    lands = True

    def __init__(self, blobs: Sequence[bytes]) -> None:
        super().__init__([])
        for blob in blobs:
            array = zeros((len(blob),), np.dtype(np.uint8))
            array[:] = np.frombuffer(blob, np.uint8)
            self._blobs.append(memoryview(array))  # type: ignore[arg-type]

    def fetch(self, users: Sequence[int]) -> list[Blob]:
        """The bytes of these users, not copied."""
        return [self._blobs[user] for user in users]

    def unpack(self, layout: Layout, users: Sequence[int], events: int) -> Arrays:
        """Arrays in pinned memory."""
        return layout.unpack(self.fetch(users), events, zeros)


def landed(layout: Layout, blobs: Sequence[Blob], events: int, device: str) -> dict[str, Feed]:
    """What `Layout.unpack` makes, on `device`: each user's bytes are copied there directly.

    In the dtype they are stored in; they become those of the cache on the device. Waits until all
    is there. Raises `ExportError` where the device has too little memory.
    """
    with device_errors(f"copy stored bytes to {device}"):
        return _landed(layout, blobs, events, device)


def _landed(layout: Layout, blobs: Sequence[Blob], events: int, device: str) -> dict[str, Feed]:
    stored: dict[str, torch.Tensor] = {}
    for user, blob in enumerate(blobs):
        for suffix, values in layout.parts(blob):
            if suffix not in stored:
                shape, kind = layout.shape(suffix, len(blobs), events), torch.from_numpy(values)
                stored[suffix] = torch.zeros(shape, dtype=kind.dtype, device=device)
            part = stored[suffix][user, :, events - values.shape[1] :]
            part.copy_(torch.from_numpy(values), non_blocking=True)
    placed: dict[str, Feed] = {}
    for suffix, dtype, _ in layout.cache.tensors:
        value = stored[suffix].to(getattr(torch, dtype))
        placed[f"cache_{suffix}"] = Placed(tuple(value.shape), np.dtype(dtype), value)
    if device == "cuda":
        torch.cuda.synchronize()
    return placed

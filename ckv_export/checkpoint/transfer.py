"""A foreign state dict on its way to native names."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor

from ckv_export.errors import CheckpointError, nearest
from ckv_export.model.parameters import refuse_unknown
from ckv_export.model.shapes import shape_text


class Transfer:
    """Each tensor of `source` is taken once; what nobody takes is an error.

    `tensors`: native name -> tensor; `origin`: native name -> name in `source`, for errors.
    """

    def __init__(self, source: Mapping[str, Tensor]) -> None:
        self.source = source
        self.taken: dict[str, None] = {}
        self.tensors: dict[str, Tensor] = {}
        self.origin: dict[str, str] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.source

    def take(self, key: str, ndim: int | None = None) -> Tensor:
        """Return the tensor `key`, of `ndim` axes if given; raise `CheckpointError` otherwise."""
        if key not in self.source:
            raise CheckpointError(
                f"the checkpoint has no tensor {key!r}{nearest(key, self.source)}"
            )
        tensor = self.source[key]
        if ndim is not None and tensor.ndim != ndim:
            raise CheckpointError(
                f"tensor {key!r} must have {ndim} axes, got {shape_text(tuple(tensor.shape))}"
            )
        self.taken[key] = None
        return tensor

    def put(self, native: str, tensor: Tensor, key: str) -> None:
        """Keep `tensor`, made from `key`, as `native`."""
        self.tensors[native] = tensor
        self.origin[native] = key

    def move(self, key: str, native: str, ndim: int | None = None) -> Tensor:
        """Take `key` and keep it as `native`."""
        tensor = self.take(key, ndim)
        self.put(native, tensor, key)
        return tensor

    def under(self, prefix: str) -> list[str]:
        """Return what follows `prefix` in the names that start with it."""
        return [key.removeprefix(prefix) for key in self.source if key.startswith(prefix)]

    def refuse_leftovers(self, ignored: tuple[str, ...]) -> None:
        """Raise `CheckpointError` naming tensors that nobody took and no pattern ignores."""
        left = [
            key
            for key in self.source
            if key not in self.taken and not any(fnmatchcase(key, p) for p in ignored)
        ]
        refuse_unknown(left, self.taken)

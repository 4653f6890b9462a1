"""What every runtime offers, so that parity and benchmarks never know which one they drive."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ckv_export.contract import GraphSpec, TensorSpec

if TYPE_CHECKING:  # a server's Python may have no more than numpy
    from typing_extensions import Self

Array = NDArray[np.generic]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class RunnerMetadata:
    """Which runtime runs which graph: name ("onnxruntime"), version and device ("cpu")."""

    runtime: str
    version: str
    device: str
    graph: str


class Runner(abc.ABC):
    """One graph on one runtime. Use it as a context manager, or activate and deactivate it.

    A backend implements `_activate`, `_deactivate`, `_infer` and `_describe`; the state checks and
    the checks of what goes in stand here.
    """

    def __init__(self, io: GraphSpec) -> None:
        self.io = io
        self._active = False

    @property
    def active(self) -> bool:
        """Whether `infer` may be called."""
        return self._active

    def activate(self) -> None:
        """Load the graph; raises `CkvError` where this machine can't run it."""
        if self._active:
            raise RuntimeError(f"the runner of {self.io.name} is active already")
        self._activate()
        self._active = True

    def deactivate(self) -> None:
        """Free what `activate` took; does nothing on an inactive runner."""
        if self._active:
            self._active = False
            self._deactivate()

    def infer(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run the graph once: input arrays by name -> output arrays by name.

        Raises ValueError unless `feeds` has exactly the graph's inputs, of its dtypes and ranks,
        with one size per axis name.
        """
        if not self._active:
            raise RuntimeError(f"the runner of {self.io.name} is not active")
        _check_feeds(self.io, feeds)
        return self._infer(feeds)

    def metadata(self) -> RunnerMetadata:
        """Name, version and device of the runtime."""
        return self._describe()

    def __enter__(self) -> Self:
        self.activate()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.deactivate()

    @abc.abstractmethod
    def _activate(self) -> None: ...

    @abc.abstractmethod
    def _deactivate(self) -> None: ...

    @abc.abstractmethod
    def _infer(self, feeds: Mapping[str, Array]) -> Arrays: ...

    @abc.abstractmethod
    def _describe(self) -> RunnerMetadata: ...


def _check_feeds(io: GraphSpec, feeds: Mapping[str, Array]) -> None:
    names = {t.name for t in io.inputs}
    if names != set(feeds):
        raise ValueError(
            f"{io.name}: inputs missing {sorted(names - set(feeds))}, "
            f"unknown {sorted(set(feeds) - names)}"
        )
    sizes: dict[str, int] = {}
    for tensor in io.inputs:
        _check_feed(tensor, feeds[tensor.name], sizes)


def _check_feed(tensor: TensorSpec, value: Array, sizes: dict[str, int]) -> None:
    fits = value.dtype == np.dtype(tensor.dtype) and value.ndim == len(tensor.axes)
    if fits:
        for axis, size in zip(tensor.axes, value.shape, strict=True):
            expected = sizes.setdefault(axis, size) if isinstance(axis, str) else axis
            fits = fits and size == expected
    if not fits:
        raise ValueError(
            f"input {tensor.name!r} must be {tensor.dtype} {list(tensor.axes)} with {sizes}, "
            f"got {value.dtype} {list(value.shape)}"
        )

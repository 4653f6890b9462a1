"""What every runtime offers, so that parity and benchmarks never know which one they drive."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ckv_export.contract import GraphSpec, TensorSpec

if TYPE_CHECKING:  # a server's Python may have no more than numpy
    from typing_extensions import Self

Array = NDArray[np.generic]
Arrays = dict[str, Array]


@dataclass(frozen=True, eq=False)
class Placed:
    """An input that lies where a runtime runs: what `Runner.place` made of an array.

    `value`: the runtime's own tensor, whose ``data_ptr()`` is its address.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    value: Any

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


Feed = Array | Placed
Feeds = Mapping[str, Feed]


@dataclass(frozen=True)
class RunnerMetadata:
    """Which runtime runs which graph: name ("onnxruntime"), version and device ("cpu")."""

    runtime: str
    version: str
    device: str
    graph: str


class Runner(abc.ABC):
    """One graph on one runtime. Use it as a context manager, or activate and deactivate it.

    A backend implements `_activate`, `_deactivate`, `_infer` and `_describe`, and on a device
    `_place` and `_upload`; the state checks and the checks of what goes in stand here.
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

    def infer(self, feeds: Feeds) -> Arrays:
        """Run the graph once: input arrays by name -> output arrays by name.

        An input may be what `place` made of its array. Raises ValueError unless `feeds` has exactly
        the graph's inputs, of its dtypes and ranks, with one size per axis name.
        """
        self._check(feeds)
        return self._infer(feeds)

    def place(self, arrays: Mapping[str, Array]) -> dict[str, Feed]:
        """Put input arrays where the runtime runs, once for many calls; they stay until dropped.

        On the CPU they are there already.
        """
        self._require_active()
        return self._place(arrays)

    def upload(self, feeds: Feeds) -> None:
        """Send inputs to the device as `infer` does, run nothing, and wait until they are there.

        Does nothing on the CPU. Raises as `infer`.
        """
        self._check(feeds)
        self._upload(feeds)

    def _check(self, feeds: Feeds) -> None:
        self._require_active()
        _check_feeds(self.io, feeds)

    def _require_active(self) -> None:
        if not self._active:
            raise RuntimeError(f"the runner of {self.io.name} is not active")

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
    def _infer(self, feeds: Feeds) -> Arrays: ...

    def _place(self, arrays: Mapping[str, Array]) -> dict[str, Feed]:
        return dict(arrays)

    def _upload(self, feeds: Feeds) -> None:
        return

    @abc.abstractmethod
    def _describe(self) -> RunnerMetadata: ...


def _check_feeds(io: GraphSpec, feeds: Feeds) -> None:
    names = {t.name for t in io.inputs}
    if names != set(feeds):
        raise ValueError(
            f"{io.name}: inputs missing {sorted(names - set(feeds))}, "
            f"unknown {sorted(set(feeds) - names)}"
        )
    sizes: dict[str, int] = {}
    for tensor in io.inputs:
        _check_feed(tensor, feeds[tensor.name], sizes)


def _check_feed(tensor: TensorSpec, value: Feed, sizes: dict[str, int]) -> None:
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

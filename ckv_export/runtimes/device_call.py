"""Calls of one set of shapes: buffers that stay, and the copies to them and back."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch

from ckv_export.contract import TensorSpec
from ckv_export.runtimes.base import Array, Arrays, Feed, Feeds, Placed
from ckv_export.runtimes.cuda_memory import CudaMemory, Replayable

KEPT = 8
"""Sets of shapes whose buffers a runner keeps."""


class CaptureFailed(RuntimeError):
    """CUDA, or the library whose work was to be captured, refused."""


class Buffer:
    """A tensor of `shape` on the device, and its pinned copy on the host."""

    def __init__(self, memory: CudaMemory, shape: tuple[int, ...], dtype: str) -> None:
        count = math.prod(shape)
        self.host = memory.on_host(count, dtype)
        self.device = memory.on_device(count, dtype)
        self.array: Array = self.host.numpy()[:count].reshape(shape)
        """The host's copy, [*shape]: overwritten by every call."""


class DeviceCall:
    """What all calls of one set of shapes share.

    `context`: set to those shapes, and nobody else's; `enqueue`: starts it on the memory's stream,
    raising where it refuses; `graphs`: whether the second call captures upload, run and download
    as a CUDA graph, which later ones replay. The first is a plain one: after a change of shapes a
    context has updates to make that can't be captured.
    """

    def __init__(
        self, memory: CudaMemory, context: Any, enqueue: Callable[[Any], None], graphs: bool
    ) -> None:
        self._memory, self._context, self._enqueue = memory, context, enqueue
        self._graphs, self._has_run = graphs, False
        self._graph: Replayable | None = None
        self._inputs: dict[str, Buffer] = {}
        self._outputs: dict[str, Buffer] = {}

    def bind_input(self, tensor: TensorSpec, feed: Feed) -> None:
        """Tell the context where it finds an input: in a buffer that stays, or where it lies."""
        if isinstance(feed, Placed):
            self._bind(tensor, feed.value)
            return
        self._inputs[tensor.name] = Buffer(self._memory, feed.shape, tensor.dtype)
        self._bind(tensor, self._inputs[tensor.name].device)

    def bind_output(self, tensor: TensorSpec, shape: tuple[int, ...]) -> None:
        """Tell the context where to write an output."""
        self._outputs[tensor.name] = Buffer(self._memory, shape, tensor.dtype)
        self._bind(tensor, self._outputs[tensor.name].device)

    def _bind(self, tensor: TensorSpec, buffer: torch.Tensor) -> None:
        self._context.set_tensor_address(tensor.name, buffer.data_ptr())

    def release(self) -> None:
        """Free the buffers of a call that failed: its traceback may outlive the next attempt."""
        self._inputs.clear()
        self._outputs.clear()

    def run(self, feeds: Feeds) -> Arrays:
        """Run once and wait; output arrays are the caller's own. Raises `CaptureFailed`."""
        self._fill(feeds)
        if self._graph is None and self._graphs and self._has_run:
            self._graph = self._captured()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._work()
        self._memory.wait()
        self._has_run = True
        return {name: buffer.array.copy() for name, buffer in self._outputs.items()}

    def _captured(self) -> Replayable:
        try:
            return self._memory.capture(self._work)
        except RuntimeError as error:
            raise CaptureFailed(str(error)) from error

    def upload(self, feeds: Feeds) -> None:
        """Send inputs to the device as `run` does, and wait."""
        self._fill(feeds)
        self._send()
        self._memory.wait()

    def _fill(self, feeds: Feeds) -> None:
        for name, buffer in self._inputs.items():
            np.copyto(buffer.array, feeds[name])  # type: ignore[arg-type]

    def _work(self) -> None:
        self._send()
        self._enqueue(self._context)
        for buffer in self._outputs.values():
            self._memory.copy(buffer.device, buffer.host)

    def _send(self) -> None:
        for buffer in self._inputs.values():
            self._memory.copy(buffer.host, buffer.device)


class DeviceCalls:
    """The calls of the latest `KEPT` sets of shapes; what falls out frees its buffers."""

    def __init__(self) -> None:
        self._calls: OrderedDict[Hashable, DeviceCall] = OrderedDict()

    def get(self, feeds: Sequence[Feed], make: Callable[[], DeviceCall]) -> DeviceCall:
        """The call for inputs of these shapes, placed where these are; made if it isn't there."""
        key = tuple((feed.shape, _address(feed)) for feed in feeds)
        if key not in self._calls:
            # Before the new one is made: both need not fit into the device's memory.
            while len(self._calls) >= KEPT:
                self._calls.popitem(last=False)
            self._calls[key] = make()
        self._calls.move_to_end(key)
        return self._calls[key]

    def __len__(self) -> int:
        return len(self._calls)


def _address(feed: Feed) -> int:
    return int(feed.value.data_ptr()) if isinstance(feed, Placed) else 0

"""A stand-in for the GPU: memory of the host, and a stream that runs when it is waited for.

Work on the stream knows addresses alone, as CUDA does. It fails where it meets one whose buffer is
gone, so that a graph which outlives its buffers, or a result read too early, fails a test.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator

import torch

from ckv_export.runtimes.cuda_memory import CudaMemory

STREAM = 77

Work = Callable[[], None]


class FakeGraph:
    """Work that was recorded; `replay` puts it on the stream again."""

    def __init__(self, memory: FakeMemory) -> None:
        self.memory, self.work, self.replays = memory, list[Work](), 0

    def replay(self) -> None:
        self.memory.require_current()
        self.replays += 1
        self.memory.pending.extend(self.work)


def bytes_of(buffer: torch.Tensor | None) -> int:
    """What a buffer takes that may be gone."""
    return 0 if buffer is None else buffer.nbytes


class FakeMemory(CudaMemory):
    """Buffers by their addresses; `waits` counts synchronisations, `graphs` lists captures.

    `room`: bytes that the device has, None for as many as are asked for.
    """

    handle = STREAM

    def __init__(self, room: int | None = None) -> None:
        self.room = room
        self.pending: list[Work] = []
        self.recording: list[Work] | None = None
        self.graphs: list[weakref.ref[FakeGraph]] = []
        self.waits = self.made = 0
        self.current = False
        self._buffers: dict[int, weakref.ref[torch.Tensor]] = {}
        self._on_device: list[weakref.ref[torch.Tensor]] = []

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        self.current = True
        try:
            yield
        finally:
            self.current = False

    def require_current(self) -> None:
        assert self.current, "the stream isn't torch's current one"

    def on_device(self, elements: int, dtype: str) -> torch.Tensor:
        asked = max(elements, 1) * getattr(torch, dtype).itemsize
        taken = sum(bytes_of(one()) for one in self._on_device)
        if self.room is not None and taken + asked > self.room:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {asked} bytes.")
        buffer = self._make(elements, dtype)
        self._on_device.append(weakref.ref(buffer))
        return buffer

    def on_host(self, elements: int, dtype: str) -> torch.Tensor:
        return self._make(elements, dtype)

    def _make(self, elements: int, dtype: str) -> torch.Tensor:
        assert self.recording is None, "memory is allocated during a capture"
        self.require_current()
        buffer = torch.full((max(elements, 1),), 1, dtype=getattr(torch, dtype))
        self._buffers[buffer.data_ptr()] = weakref.ref(buffer)
        self.made += 1
        return buffer

    def at(self, address: int) -> torch.Tensor:
        """The buffer at `address`."""
        buffer = self._buffers[address]()
        assert buffer is not None, "the stream came to a buffer that has been freed"
        return buffer

    def live(self) -> int:
        """How many buffers there are."""
        return sum(reference() is not None for reference in self._buffers.values())

    def put(self, work: Work) -> None:
        """Put work on the stream, or into the graph that is captured."""
        self.require_current()
        (self.pending if self.recording is None else self.recording).append(work)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        assert source.nbytes == target.nbytes
        a, b, size = source.data_ptr(), target.data_ptr(), source.nbytes

        def work() -> None:
            self.at(a)
            self.at(b)
            ctypes.memmove(b, a, size)

        self.put(work)

    def wait(self) -> None:
        assert self.recording is None, "the stream is waited for during a capture"
        self.waits += 1
        pending, self.pending = self.pending, []
        for work in pending:
            work()

    def capture(self, work: Work) -> FakeGraph:
        assert not self.pending, "a capture begins while the stream is busy"
        graph = FakeGraph(self)
        self.recording = graph.work
        try:
            work()
        finally:
            self.recording = None
        self.graphs.append(weakref.ref(graph))
        return graph

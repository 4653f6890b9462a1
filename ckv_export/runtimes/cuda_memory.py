"""Memory of the GPU and pinned memory of the host, with the stream that copies between them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from ckv_export.errors import EngineError


class Replayable(Protocol):
    """Work captured from a stream."""

    def replay(self) -> None:
        """Put all of it on the current stream again."""


class CudaMemory:
    """Buffers and the stream of one runner; `EngineError` without a usable GPU.

    Every buffer is flat and has one element at least: TensorRT takes no null address, not even for
    a tensor without elements (no history, no appended events). What happens to buffers happens on
    the stream, within a block of `on_stream`, and has happened after `wait`.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise EngineError(
                "running an engine needs an NVIDIA GPU and a CUDA build of torch: there is no GPU "
                f"here that torch {torch.__version__} can use"
            )
        new_stream: Any = torch.cuda.Stream  # its constructor has no annotations
        try:
            self._stream = new_stream()
        except RuntimeError as error:  # held by another process, or without memory for a context
            reason = str(error).partition("\n")[0]
            raise EngineError(f"running an engine needs a stream of the GPU: {reason}") from error

    @property
    def handle(self) -> int:
        """Address of the CUDA stream."""
        return int(self._stream.cuda_stream)

    def on_stream(self) -> AbstractContextManager[Any]:
        """Order copies, allocations and replays on the stream within the block."""
        return torch.cuda.stream(self._stream)

    def on_device(self, elements: int, dtype: str) -> torch.Tensor:
        """Make a buffer on the GPU of `elements` (numpy dtype name), one at least."""
        return torch.empty(max(elements, 1), dtype=getattr(torch, dtype), device="cuda")

    def on_host(self, elements: int, dtype: str) -> torch.Tensor:
        """Make a pinned buffer on the host of `elements` (numpy dtype name), one at least."""
        return torch.empty(max(elements, 1), dtype=getattr(torch, dtype), pin_memory=True)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy all of a buffer to one of the same size, when the stream comes to it."""
        target.copy_(source, non_blocking=True)

    def wait(self) -> None:
        """Wait for all that is on the stream."""
        self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Replayable:
        """Record what `work` puts on the stream, without running it, as a CUDA graph."""
        graph: Any = torch.cuda.CUDAGraph()
        # By default a call of any other thread of this process would spoil the capture.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        recorded: Replayable = graph
        return recorded

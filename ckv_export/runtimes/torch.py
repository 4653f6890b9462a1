"""A split module run by PyTorch itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ckv_export.contract import GraphSpec
from ckv_export.errors import ExportError
from ckv_export.runtimes.base import Array, Arrays, Feed, Feeds, Placed, Runner, RunnerMetadata


@contextmanager
def device_errors(what: str) -> Iterator[None]:
    """Turn what a device reports, such as too little memory, into an `ExportError` on `what`."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
        raise ExportError(f"PyTorch can't {what}: {str(error).partition(chr(10))[0]}") from error


class TorchRunner(Runner):
    """A module whose inputs and outputs are those of `io`, and which lies on `device`.

    What the device has no memory for is an `ExportError`.
    """

    def __init__(self, module: nn.Module, io: GraphSpec, device: str = "cpu") -> None:
        super().__init__(io)
        self.module, self.device = module, device

    def _activate(self) -> None:
        self.module.eval()

    def _deactivate(self) -> None:
        pass

    def _infer(self, feeds: Feeds) -> Arrays:
        with device_errors(f"run {self.io.name} on {self.device}"), torch.inference_mode():
            outputs = self.module(*(self._sent(feeds[t.name]) for t in self.io.inputs))
            arrays = [out.cpu().numpy() for out in outputs]
        return {t.name: array for t, array in zip(self.io.outputs, arrays, strict=True)}

    def _sent(self, feed: Feed) -> Tensor:
        if isinstance(feed, Placed):
            placed: Tensor = feed.value
            return placed
        # From pinned memory this doesn't wait; what runs after it on the device comes after it.
        return torch.from_numpy(feed).to(self.device, non_blocking=True)

    def _place(self, arrays: Mapping[str, Array]) -> dict[str, Feed]:
        if self.device == "cpu":
            return dict(arrays)
        with device_errors(f"place inputs of {self.io.name} on {self.device}"):
            placed = {n: Placed(a.shape, a.dtype, self._sent(a)) for n, a in arrays.items()}
            self._wait()
        return dict(placed)

    def _upload(self, feeds: Feeds) -> None:
        with device_errors(f"send inputs of {self.io.name} to {self.device}"):
            sent = [self._sent(feed) for feed in feeds.values()]
            self._wait()
            del sent  # held until it was there

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _describe(self) -> RunnerMetadata:
        device = torch.cuda.get_device_name() if self.device == "cuda" else self.device
        return RunnerMetadata("pytorch", str(torch.__version__), device, self.io.name)

"""A split module run by PyTorch itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ckv_export.contract import GraphSpec
from ckv_export.errors import ExportError
from ckv_export.runtimes.base import Array, Arrays, Feed, Feeds, Placed, Runner, RunnerMetadata


class TorchRunner(Runner):
    """A module whose inputs and outputs are those of `io`, on `device`: "cpu" or "cuda".

    Elsewhere than on the CPU it is a copy that runs. Activation raises `ExportError` where torch
    has no such device.
    """

    def __init__(self, module: nn.Module, io: GraphSpec, device: str = "cpu") -> None:
        super().__init__(io)
        self.module, self.device = module, device
        self._running: nn.Module = module

    def _activate(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ExportError(
                "running PyTorch on cuda needs an NVIDIA GPU and a CUDA build of torch: there is "
                f"no GPU here that torch {torch.__version__} can use"
            )
        self._running = self._placed_module().eval()

    def _placed_module(self) -> nn.Module:
        if self.device == "cpu":
            return self.module
        return copy.deepcopy(self.module).to(self.device)

    def _deactivate(self) -> None:
        self._running = self.module

    def _infer(self, feeds: Feeds) -> Arrays:
        with torch.inference_mode():
            outputs = self._running(*(self._sent(feeds[t.name]) for t in self.io.inputs))
        return {t.name: out.cpu().numpy() for t, out in zip(self.io.outputs, outputs, strict=True)}

    def _sent(self, feed: Feed) -> Tensor:
        if isinstance(feed, Placed):
            placed: Tensor = feed.value
            return placed
        # From pinned memory this doesn't wait; what runs after it on the device comes after it.
        return torch.from_numpy(feed).to(self.device, non_blocking=True)

    def _place(self, arrays: Mapping[str, Array]) -> dict[str, Feed]:
        if self.device == "cpu":
            return dict(arrays)
        placed = {n: Placed(a.shape, a.dtype, self._sent(a)) for n, a in arrays.items()}
        self._wait()
        return dict(placed)

    def _upload(self, feeds: Feeds) -> None:
        sent = [self._sent(feed) for feed in feeds.values()]
        self._wait()
        del sent  # held until it was there

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _describe(self) -> RunnerMetadata:
        device = torch.cuda.get_device_name() if self.device == "cuda" else self.device
        return RunnerMetadata("pytorch", str(torch.__version__), device, self.io.name)

"""A split module run by PyTorch itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ckv_export.contract import GraphSpec
from ckv_export.runtimes.base import Array, Arrays, Feed, Feeds, Placed, Runner, RunnerMetadata


class TorchRunner(Runner):
    """A module whose inputs and outputs are those of `io`, and which lies on `device`."""

    def __init__(self, module: nn.Module, io: GraphSpec, device: str = "cpu") -> None:
        super().__init__(io)
        self.module, self.device = module, device

    def _activate(self) -> None:
        self.module.eval()

    def _deactivate(self) -> None:
        pass

    def _infer(self, feeds: Feeds) -> Arrays:
        with torch.inference_mode():
            outputs = self.module(*(self._sent(feeds[t.name]) for t in self.io.inputs))
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

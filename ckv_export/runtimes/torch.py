"""A split module run by PyTorch itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ckv_export.contract import GraphSpec
from ckv_export.runtimes.base import Array, Arrays, Runner, RunnerMetadata


class TorchRunner(Runner):
    """A module whose inputs and outputs are those of `io`, on the CPU."""

    def __init__(self, module: nn.Module, io: GraphSpec) -> None:
        super().__init__(io)
        self.module = module

    def _activate(self) -> None:
        self.module.eval()

    def _deactivate(self) -> None:
        pass

    def _infer(self, feeds: Mapping[str, Array]) -> Arrays:
        with torch.inference_mode():
            outputs = self.module(*(torch.from_numpy(feeds[t.name]) for t in self.io.inputs))
        return {t.name: out.numpy() for t, out in zip(self.io.outputs, outputs, strict=True)}

    def _describe(self) -> RunnerMetadata:
        return RunnerMetadata("pytorch", str(torch.__version__), "cpu", self.io.name)

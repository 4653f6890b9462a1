"""What a runtime computed, made up by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.inputs import Case
from ckv_export.parity.replay import CaseRun
from ckv_export.runtimes.base import Array, Arrays, Runner, RunnerMetadata


def scored(got: Array, truth: Array, labels: Array | None = None) -> CaseRun:
    """A run of a case of which only scores [B, C] are known."""
    case = ExpectedCase(Case("made up", {}, labels), {"score": truth}, {})
    return CaseRun(case, {}, None, {"score": got}, None)


class Tampered(Runner):
    """A runner whose feeds and outputs pass through `feeds` and `outputs`."""

    def __init__(
        self,
        inner: Runner,
        feeds: Callable[[Arrays], None] = lambda _: None,
        outputs: Callable[[Arrays], None] = lambda _: None,
    ) -> None:
        super().__init__(inner.io)
        self.inner, self.feeds, self.outputs = inner, feeds, outputs

    def _activate(self) -> None:
        self.inner.activate()

    def _deactivate(self) -> None:
        self.inner.deactivate()

    def _infer(self, feeds: Mapping[str, Array]) -> Arrays:
        changed = {name: a.copy() for name, a in feeds.items()}
        self.feeds(changed)
        outputs = {name: a.copy() for name, a in self.inner.infer(changed).items()}
        self.outputs(outputs)
        return outputs

    def _describe(self) -> RunnerMetadata:
        return dataclasses.replace(self.inner.metadata(), runtime="tampered")


def rounded(arrays: Arrays) -> None:
    """Every number through fp16, as a half-precision runtime returns them."""
    for name, array in arrays.items():
        if array.dtype == np.float32:
            arrays[name] = array.astype(np.float16).astype(np.float32)

"""Drawn models, exported once in a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ckv_export.contract import ModelSpec
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.registry import build_model, build_reference
from ckv_export.onnx_export.export import export_graph
from ckv_export.onnx_export.save import save_models
from ckv_export.parity.expected import ExpectedCase, record
from ckv_export.parity.tolerances import TOLERANCES
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner
from ckv_export.runtimes.torch import TorchRunner
from ckv_testing.draw import PLAIN, draw_cases, draw_state, make_spec

# Between them: every kind of feature in both roles, both mask rules, each side without a pool.
VARIANTS = {
    "sim": make_spec("sim", "rich, fuxictr mask, 2 heads"),
    "eta": make_spec("eta", "K not shared, biases, 4 heads", features=PLAIN),
    "sdim": make_spec("sdim", "V not shared, neither silu nor scale"),
    "twin": make_spec("twin", "one row, wide window and search"),
}


@dataclass(frozen=True)
class Export:
    """A model drawn from `seed`, and the place of its two ONNX files."""

    spec: ModelSpec
    state: Mapping[str, Tensor]
    folder: Path
    cases: list[ExpectedCase]
    seed: int

    def graphs(self) -> tuple[PrefillGraph, DecodeGraph]:
        """The split modules that were exported."""
        model = build_model(self.spec, self.state)
        return PrefillGraph(model), DecodeGraph(model)

    def save(self, folder: Path) -> None:
        """Export both graphs into `folder`; a few seconds."""
        with one_thread():
            save_models({graph.io.name: export_graph(graph) for graph in self.graphs()}, folder)

    def torch_runners(self) -> tuple[TorchRunner, TorchRunner]:
        """Prefill and decode in PyTorch."""
        prefill, decode = self.graphs()
        return TorchRunner(prefill, prefill.io), TorchRunner(decode, decode.io)

    def runners(self, folder: Path | None = None) -> tuple[OnnxRuntimeRunner, OnnxRuntimeRunner]:
        """Prefill and decode of `folder` in ONNX Runtime."""
        prefill, decode = self.graphs()
        return (
            OnnxRuntimeRunner((folder or self.folder) / "prefill.onnx", prefill.io, threads=1),
            OnnxRuntimeRunner((folder or self.folder) / "decode.onnx", decode.io, threads=1),
        )


def drawn(kind: str, folder: Path, seed: int) -> Export:
    """The model of `kind`; its files may not be in `folder` yet."""
    spec = VARIANTS[kind]
    state = draw_state(spec, np.random.default_rng(seed))
    with one_thread():
        cases = record(build_reference(spec, state), draw_cases(spec, seed))
        scores = np.concatenate([case.outputs["score"].ravel() for case in cases])
        lively = np.ptp(scores) > 100 * TOLERANCES["score"].absolute
        assert lively, "drawn dead: any graph would pass"
    return Export(spec, state, folder, cases, seed)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: with tiny tensors on a busy machine, others only wait for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

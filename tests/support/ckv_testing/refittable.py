"""Exported files whose learned weights an engine exchanges, and the same files edited."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ckv_export.contract import Profile
from ckv_export.engine import BuildRequest, Settings
from ckv_testing.fake_network import weights_of

REFIT = Settings(refit=True)
GRAPHS = ("prefill", "decode")
POOL = "model.attention.k.pool"


@dataclasses.dataclass(frozen=True)
class Files:
    """A model's exported files and the modules that they were exported from."""

    folder: Path
    graphs: dict[str, Any]

    def learned(self, graph: str) -> set[str]:
        """What of the graph's floating-point state has come into its file, told by PyTorch."""
        state = self.graphs[graph].state_dict()
        floats = {name for name, tensor in state.items() if tensor.is_floating_point()}
        return floats & set(weights_of(self.folder / f"{graph}.onnx"))

    def request(self, graph: str, target: str = "current") -> BuildRequest:
        io = self.graphs[graph].io
        profile = Profile.default(self.graphs[graph].model.spec)
        path = self.folder / f"{graph}.onnx"
        return BuildRequest(path, io, profile, (target,), settings=REFIT)


def edited(path: Path, to: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of an ONNX file, edited."""
    model = onnx.load(str(path))
    edit(model)
    onnx.save(model, str(to))
    return to


def retrained(rng: np.random.Generator, keep: str = "") -> Callable[[onnx.ModelProto], None]:
    """Other values for every tensor of the model but `keep`."""

    def edit(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.startswith("model.") and tensor.name != keep:
                values = numpy_helper.to_array(tensor)
                moved = (values + rng.standard_normal(values.shape)).astype(values.dtype)
                tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))

    return edit


def more_rows(model: onnx.ModelProto) -> None:
    pool = next(t for t in model.graph.initializer if t.name == POOL)
    values = numpy_helper.to_array(pool)
    pool.CopyFrom(numpy_helper.from_array(np.concatenate([values, values[:1]]), POOL))

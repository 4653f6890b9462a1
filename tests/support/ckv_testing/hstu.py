"""The run's one export of HSTU, for ONNX Runtime and for engines."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from ckv_export.checkpoint.native import save_native
from ckv_export.contract import AttentionSpec, ModelSpec
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.registry import build_model
from ckv_export.onnx_export.export import export_graph
from ckv_export.onnx_export.save import save_models
from ckv_export.training import demo_spec, initial_state
from ckv_testing.workers import common_folder, made_once

# The demo's two layers, features and times; few rows, so that rounding hardly ever flips one.
SPEC = dataclasses.replace(demo_spec("hstu"), attention=AttentionSpec(16, 2, 2, 3, 12, 9))


def exported_hstu(base: Path) -> Path:
    """A folder with ``hstu.pt``, ``prefill.onnx`` and ``decode.onnx``; `base`: pytest's."""
    return made_once(common_folder(base) / "exported_hstu", _export)


def hstu_state(spec: ModelSpec) -> dict[str, Tensor]:
    """No bias is zero, and pools are not as small as before any training.

    What attention returns would be next to nothing, and the norm behind it would make much of its
    rounding.
    """
    drawn = torch.Generator().manual_seed(0)
    state = initial_state(spec, 0)
    for name, tensor in state.items():
        if name.endswith("_bias"):
            state[name] = torch.randn(11, generator=drawn) / 2
        elif name.endswith(".pool"):
            state[name] = 10 * tensor
    return state


def _export(folder: Path) -> None:
    state = hstu_state(SPEC)
    save_native(folder / "hstu.pt", SPEC, state)
    model = build_model(SPEC, state)
    graphs = PrefillGraph(model), DecodeGraph(model)
    save_models({graph.io.name: export_graph(graph) for graph in graphs}, folder)

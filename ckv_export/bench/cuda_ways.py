"""The rivals on a GPU: PyTorch, and whole K and V on the device or fetched from the host."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch

from ckv_export.bench.full_cache import FullDecodeGraph, whole_cache
from ckv_export.bench.roster import FULL_DECODE, ON_CUDA, CompiledRunner, Weights
from ckv_export.bench.stored import Layout, full_cache_spec
from ckv_export.bench.ways import LeftOut, Way
from ckv_export.errors import ExportError
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.base import CollectiveModel
from ckv_export.runtimes.base import Array, Arrays, Runner
from ckv_export.runtimes.onnxruntime import CUDA, OnnxRuntimeRunner, load_module
from ckv_export.runtimes.torch import TorchRunner, device_errors

GRAPHS = "reduce-overhead"
"""torch.compile's name of the mode that replays CUDA graphs."""


def cuda_ways(
    weights: Weights, first: Way, scratch: Path, floats: str
) -> tuple[list[Way], list[LeftOut]]:
    """The ways that need the checkpoint's weights and a GPU, and why there are none.

    `first`: the bundle's own way; `scratch`: where `roster.export_full_decode` writes decode for
    the full cache.
    """
    if not torch.cuda.is_available():
        reason = f"torch {torch.__version__} has no GPU here that it can use"
        return [], [LeftOut(ON_CUDA, reason)]
    ways, left_out = list[Way](), list[LeftOut]()
    try:
        ways += torch_ways(weights.model, first, floats, "cuda")
    except ExportError as error:
        left_out.append(LeftOut("PyTorch on cuda", str(error)))
    names = [f"ONNX Runtime CUDA, full KV {kept}" for kept in ("held", "fetched")]
    if CUDA not in load_module().get_available_providers():
        reason = "this ONNX Runtime has no CUDA provider: install onnxruntime-gpu"
        return ways, left_out + [LeftOut(name, reason) for name in names]
    io = FullDecodeGraph(weights.model).io
    decode = OnnxRuntimeRunner(scratch / FULL_DECODE, io, CUDA)
    ways += _full_pair("ONNX Runtime CUDA", weights.model, first, decode, floats, "cuda")
    return ways, left_out


def torch_ways(model: CollectiveModel, first: Way, floats: str, device: str) -> list[Way]:
    """PyTorch on `device`, eager, compiled, and compiled with CUDA graphs; one copy of `model`.

    Raises `ExportError` where the device has too little memory for it.
    """
    with device_errors(f"hold the model's weights on {device}"):
        there = copy.deepcopy(model).to(device)
        graphs = PrefillGraph(there), DecodeGraph(there), FullDecodeGraph(there)
    eager = [TorchRunner(graph, graph.io, device) for graph in graphs]
    compiled = [CompiledRunner(graph, graph.io, device) for graph in graphs]
    replayed = [CompiledRunner(graph, graph.io, device, GRAPHS) for graph in graphs]
    ways = []
    for name, runners, settles in (
        ("PyTorch eager", eager, 1),
        ("torch.compile", compiled, 1),
        ("torch.compile with CUDA graphs", replayed, 4),
    ):
        title, (prefill, decode, full) = f"{name} on {device}", runners
        compact = Way(f"{title}, compact cache", "compact", prefill, decode, first.layout)
        ways += [compact, *_full_pair(title, model, first, full, floats, device)]
        for way in ways[-3:]:
            way.settles = settles
    return ways


def _full_pair(
    title: str, model: CollectiveModel, first: Way, decode: Runner, floats: str, device: str
) -> list[Way]:
    """Whole K and V on the device; and in the host's memory, fetched by every request."""
    layout = Layout(model.spec, full_cache_spec(model.spec), floats)

    def expand(cache: Mapping[str, Array]) -> Arrays:
        return whole_cache(model, cache)

    name, rest = f"{title}, full KV", (first.prefill, decode, layout, expand)
    held = Way(f"{name} held", "full, held", *rest)
    fetched = Way(f"{name} fetched", "full, fetched", *rest, lands=device)
    return [held, fetched]

"""A split graph to an ONNX model, by PyTorch's exporter and our passes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping

import onnx_ir as ir
import torch
from torch import Tensor

from ckv_export import __version__
from ckv_export.contract import GraphSpec, TensorSpec
from ckv_export.errors import ExportError
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.decode_items import DecodeItemsGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.onnx_export import functions
from ckv_export.onnx_export.passes import (
    attach_functions,
    fix_reduced_shapes,
    name_axes,
    name_nodes,
    strip_metadata,
)

_TORCH_DTYPES = {
    "int32": torch.int32,
    "bool": torch.bool,
    "float32": torch.float32,
    "float16": torch.float16,
}

# Sizes are all different and none is 0 or 1, so that no two axes look alike to the exporter;
# S, K and N = S + T exceed any window or top-k, whose minimum must stay symbolic.
_LEAST_SIZES = {"B": 2, "S": 11, "K": 7, "T": 3, "C": 5, "I": 17}

Graph = PrefillGraph | DecodeGraph | DecodeItemsGraph


def example_sizes(window: int | None, topk: int) -> dict[str, int]:
    """Axis sizes of the example inputs that are traced."""
    longest = max(window or 0, topk)
    return _LEAST_SIZES | {"S": longest + 11, "K": max((window or 0) - 1, 7), "I": longest + 17}


def example_inputs(io: GraphSpec, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """All-zero inputs of those sizes: ids 0 exist in every table."""
    return tuple(torch.zeros(t.shape(sizes), dtype=_TORCH_DTYPES[t.dtype]) for t in io.inputs)


def _dynamic_axes(tensor: TensorSpec, dims: Mapping[str, torch.export.Dim]) -> dict[int, object]:
    return {i: dims[a] for i, a in enumerate(tensor.axes) if isinstance(a, str)}


def export_graph(graph: Graph) -> ir.Model:
    """`graph` as an ONNX model with the contract's names; weights still share PyTorch's memory.

    Raises `ExportError` where PyTorch can't export it.
    """
    spec = graph.model.spec
    sizes = example_sizes(spec.window, int(spec.options.get("topk", 0)))
    dims = {axis: torch.export.Dim(axis, min=0) for axis in sizes}
    shapes = tuple(_dynamic_axes(t, dims) for t in graph.io.inputs)
    try:
        with warnings.catch_warnings(), torch.inference_mode(False):
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                graph,
                example_inputs(graph.io, sizes),
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=[t.name for t in graph.io.inputs],
                output_names=[t.name for t in graph.io.outputs],
                custom_translation_table=functions.translation_table(),
                opset_version=functions.OPSET,
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        # Around its cause stands advice to those who work on PyTorch, in colours.
        cause = error.__cause__ or error
        reason = str(cause) or repr(cause)
        raise ExportError(f"PyTorch can't export the {graph.io.name} graph: {reason}") from error
    assert program is not None
    model = program.model
    name_axes.run(model, graph.io)
    fix_reduced_shapes.run(model)
    name_nodes.run(model)
    strip_metadata.run(model)
    attach_functions.run(model, spec.attention, graph.model.precision)
    model.producer_name, model.producer_version = "ckv-export", __version__
    model.graph.name = graph.io.name
    return model

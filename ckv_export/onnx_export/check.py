"""What an exported file must satisfy before any runtime sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from ckv_export.contract import GraphSpec, TensorSpec
from ckv_export.errors import ExportError
from ckv_export.onnx_export.functions import DOMAIN

_ELEMENT_TYPES = {
    "int32": onnx.TensorProto.INT32,
    "bool": onnx.TensorProto.BOOL,
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
}


def check_file(path: Path, io: GraphSpec, pools: int) -> None:
    """Raise `ExportError` unless `path` is valid ONNX with the inputs and outputs of `io`.

    `pools`: how many nodes of domain ``ckv`` the graph must have: a layer's pools are read in one.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported {io.name} graph is not valid ONNX: {error}") from error
    model = onnx.load(str(path), load_external_data=False)
    _compare(f"inputs of the {io.name} graph", model.graph.input, io.inputs)
    _compare(f"outputs of the {io.name} graph", model.graph.output, io.outputs)
    bodies = [function for function in model.functions if function.domain == DOMAIN]
    parts = (model.graph, *bodies)
    used = {node.op_type for part in parts for node in part.node if node.domain == DOMAIN}
    if missing := used - {body.name for body in bodies}:
        raise ExportError(
            f"the exported {io.name} graph is not valid ONNX: no function body of "
            f"{', '.join(sorted(missing))}"
        )
    nodes = [node.name for node in model.graph.node if node.domain == DOMAIN]
    if len(nodes) != pools:
        raise ExportError(
            f"the exported {io.name} graph must have {pools} nodes of domain {DOMAIN}, got {nodes}"
        )


def _compare(what: str, got: Sequence[onnx.ValueInfoProto], expected: Sequence[TensorSpec]) -> None:
    found = [_described(value) for value in got]
    wanted = [(t.name, _ELEMENT_TYPES[t.dtype], tuple(t.axes)) for t in expected]
    if found != wanted:
        raise ExportError(f"the {what} must be {wanted}, got {found}")


def _described(value: onnx.ValueInfoProto) -> tuple[str, int, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    axes = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return value.name, tensor.elem_type, axes

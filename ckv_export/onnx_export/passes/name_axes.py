"""Give dynamic axes the contract's names."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ckv_export.contract import GraphSpec, TensorSpec


def run(model: ir.Model, io: GraphSpec) -> None:
    """Requires: inputs and outputs of `model` named as in `io`.

    The exporter loses an axis name where an input goes unused, and then invents symbols.
    Ensures: every graph input and output has the shape of `io`; inner values use the same names.
    """
    values = {v.name: v for v in (*model.graph.inputs, *model.graph.outputs)}
    renamed: dict[str, str] = {}
    for tensor in io.tensors():
        renamed |= _symbols(values[tensor.name], tensor)
        values[tensor.name].shape = ir.Shape(list(tensor.axes))
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None and value.name not in values:
                value.shape = ir.Shape([_renamed(dim, renamed) for dim in value.shape])


def _symbols(value: ir.Value, tensor: TensorSpec) -> dict[str, str]:
    if value.shape is None:
        return {}
    pairs = zip(value.shape, tensor.axes, strict=True)
    return {str(dim.value): str(axis) for dim, axis in pairs if isinstance(dim, ir.SymbolicDim)}


def _renamed(dim: int | ir.SymbolicDim, renamed: Mapping[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return renamed.get(str(dim.value), dim.value)

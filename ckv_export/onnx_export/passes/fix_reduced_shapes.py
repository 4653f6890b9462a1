"""Say behind each reduction what shape its result has.

ONNX Runtime before 1.32 leaves a reduction of a tensor without elements the tensor's own shape, so
that a call without new events or candidates failed there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def run(model: ir.Model) -> None:
    """Requires: reductions ``Reduce*`` over one axis, behind which all sizes are numbers.

    Ensures: a Reshape behind each, which takes the sizes before the axis from what it is given.
    Where a tensor has elements it changes nothing and moves nothing.
    """
    for node in list(model.graph):
        if node.op_type.startswith("Reduce"):
            _reshape(model.graph, node, _sizes(node))


def _sizes(node: ir.Node) -> list[int]:
    """Of the result; 0 stands for that of the same place before."""
    source, axes = node.inputs
    assert source is not None
    assert source.shape is not None
    (axis,) = _numbers(axes)
    shape: list[int | ir.SymbolicDim] = list(source.shape)
    axis %= len(shape)
    behind = [size for size in shape[axis + 1 :] if isinstance(size, int)]
    assert len(behind) == len(shape) - axis - 1, f"{node.name}: sizes behind its axis are symbols"
    kept = [1] if node.attributes.get_int("keepdims", 1) else []
    return [0] * axis + kept + behind


def _numbers(value: ir.Value | None) -> list[int]:
    constant = None if value is None else ir.convenience.get_const_tensor(value)
    assert constant is not None
    return [int(number) for number in constant.numpy()]


def _reshape(graph: ir.Graph, node: ir.Node, sizes: Sequence[int]) -> None:
    (reduced,) = node.outputs
    name = reduced.name
    shape = ir.Value(
        name=f"{name}_sizes", const_value=ir.tensor(np.array(sizes), name=f"{name}_sizes")
    )
    graph.register_initializer(shape)
    reduced.name = f"{name}_reduced"
    reshape = ir.node("Reshape", [reduced, shape], metadata_props=dict(node.metadata_props))
    (result,) = reshape.outputs
    result.name, result.shape, result.type = name, reduced.shape, reduced.type
    graph.insert_after(node, reshape)
    ir.convenience.replace_all_uses_with(reduced, result, replace_graph_outputs=True)
    reshape.replace_input_with(0, reduced)

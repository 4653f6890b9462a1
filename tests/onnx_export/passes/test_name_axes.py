from __future__ import annotations

import onnx
import onnx_ir as ir

from ckv_export.contract import GraphSpec, TensorSpec
from ckv_export.onnx_export.passes import name_axes

IO = GraphSpec(
    "g",
    (TensorSpec("x", "float32", ("B", "S", 2)), TensorSpec("mask", "bool", ("B", "S"))),
    (TensorSpec("y", "float32", ("B", "S", 4)),),
)


def parsed(text: str) -> ir.Model:
    return ir.serde.deserialize_model(onnx.parser.parse_model(text))


def shapes(model: ir.Model) -> dict[str, list[str | int]]:
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    return {
        v.name: [d if isinstance(d, int) else str(d.value) for d in v.shape]
        for v in values
        if v.shape is not None
    }


EXPORTED = """
<ir_version: 10, opset_import: ["": 20]>
g (float[s11, s53, 2] x, bool[s77, s53] mask) => (float[s11, s53, 4] y)
<float[s11, s53, 2] a, float[s11, "s11 + s53", 2] b, float[5, other] c, bool[s77] d>
{
    a = Neg(x)
    b = Identity(a)
    c = Identity(b)
    d = Identity(mask)
    y = Concat <axis = -1> (a, x)
}
"""


def test_invented_symbols_become_the_contracts_axes():
    """Next to nothing uses `mask`, so that it has a symbol of its own."""
    model = parsed(EXPORTED)
    name_axes.run(model, IO)
    got = shapes(model)
    assert got["x"] == ["B", "S", 2]
    assert got["mask"] == ["B", "S"]
    assert got["y"] == ["B", "S", 4]
    assert got["a"] == ["B", "S", 2], "inner values use the same names"
    assert got["d"] == ["B"], "those of any input"


def test_what_is_no_symbol_of_an_input_stays():
    model = parsed(EXPORTED)
    name_axes.run(model, IO)
    assert shapes(model)["c"] == [5, "other"]


def test_fixed_sizes_of_the_contract_replace_symbols_too():
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[s0, s1, s2] x, bool[s0, s1] mask)'
    model = parsed(text + " => (float[s0, s1, s4] y) { y = Concat <axis = -1> (x, x) }")
    name_axes.run(model, IO)
    assert shapes(model)["x"] == ["B", "S", 2]
    assert shapes(model)["y"] == ["B", "S", 4]


def test_names_that_are_right_stay_and_a_second_run_changes_nothing():
    model = parsed(EXPORTED)
    name_axes.run(model, IO)
    once = shapes(model)
    name_axes.run(model, IO)
    assert shapes(model) == once


def test_value_without_a_shape_is_left_alone():
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[s0, s1, 2] x, bool[s0, s1] mask)'
    model = parsed(text + " => (float[s0, s1, 4] y) { a = Neg(x) y = Concat <axis = -1> (a, a) }")
    name_axes.run(model, IO)
    assert next(iter(model.graph)).outputs[0].shape is None

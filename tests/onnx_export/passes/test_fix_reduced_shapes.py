from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from ckv_export.onnx_export.passes import fix_reduced_shapes


def reduction(operator: str, shape: str, axis: int, keepdims: int | None) -> onnx.ModelProto:
    """A graph of one reduction, after the pass; the operator's own `keepdims` where None."""
    kept = "" if keepdims is None else f"<keepdims = {keepdims}>"
    text = f"""<ir_version: 10, opset_import: ["": 20]>
    g (float[{shape}] x) => (float[] y) <int64[1] axes = {{{axis}}}> {{
        reduced = {operator}{kept}(x, axes)
        y = Neg(reduced)
    }}"""
    made = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    fix_reduced_shapes.run(made)
    return ir.serde.serialize_model(made)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    (y,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    return y


def as_before_1_32(model: onnx.ModelProto) -> onnx.ModelProto:
    """With ONNX Runtime's reduction of nothing, which gives what it is given."""
    node = next(n for n in model.graph.node if n.op_type.startswith("Reduce"))
    node.op_type = "Identity"
    del node.input[1:], node.attribute[:]
    return model


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axis", [-1, -2, 2, 3])
def test_result_is_the_reduction(operator: str, keepdims: int, axis: int, rng: np.random.Generator):
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    numpy = {"ReduceSum": np.sum, "ReduceMax": np.max, "ReduceMin": np.min}[operator]
    wanted = -numpy(x, axis=axis, keepdims=bool(keepdims))
    got = run(reduction(operator, "B,T,4,5", axis, keepdims), x)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("sizes", [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axis", [-1, -2])
def test_shape_is_right_where_the_runtime_forgets_to_reduce(
    sizes: tuple[int, int], keepdims: int, axis: int
):
    model = as_before_1_32(reduction("ReduceMax", "B,T,4,5", axis, keepdims))
    x = np.zeros((*sizes, 4, 5), np.float32)
    assert run(model, x).shape == np.sum(x, axis=axis, keepdims=bool(keepdims)).shape


def test_an_axis_of_unknown_size_may_be_reduced():
    model = as_before_1_32(reduction("ReduceMin", "B,C,N", -1, 1))
    assert run(model, np.zeros((0, 3, 7), np.float32)).shape == (0, 3, 1)


def test_what_is_reduced_is_kept_as_an_axis_unless_said_otherwise():
    model = as_before_1_32(reduction("ReduceMax", "B,4", -1, None))
    assert run(model, np.zeros((0, 4), np.float32)).shape == (0, 1)


def test_the_result_is_known_as_the_reduction_was():
    """Where it comes from, by which nodes are named, and what it is."""
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (float[B,T,4] x) => (float[B,T] y) <float[B,T] reduced, int64[1] axes = {-1}> {
        reduced = ReduceSum<keepdims = 0>(x, axes)
        y = Neg(reduced)
    }"""
    made = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    next(iter(made.graph)).metadata_props["module"] = "model.attention"
    fix_reduced_shapes.run(made)
    reshape = list(made.graph)[1]
    assert reshape.op_type == "Reshape"
    assert reshape.metadata_props == {"module": "model.attention"}
    (result,) = reshape.outputs
    assert result.name == "reduced"
    assert result.type == ir.TensorType(ir.DataType.FLOAT)
    assert result.shape == ir.Shape(["B", "T"])


def test_only_numbers_may_stand_behind_the_axis():
    with pytest.raises(AssertionError, match="sizes behind its axis are symbols"):
        reduction("ReduceSum", "B,T,C", 1, 0)


def test_a_reduction_may_be_an_output():
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (float[B,4] x) => (float[B] y) <int64[1] axes = {-1}> {
        y = ReduceSum<keepdims = 0>(x, axes)
    }"""
    made = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    fix_reduced_shapes.run(made)
    assert run(ir.serde.serialize_model(made), np.ones((3, 4), np.float32)).tolist() == [4, 4, 4]

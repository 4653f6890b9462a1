"""bf16 graphs in fp32 that is rounded: what a bf16 operator that adds up in fp32 computes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from ckv_export.contract import GraphSpec, TensorSpec
from ckv_export.errors import ExportError
from ckv_export.runtimes.bf16 import RoundedBf16Runner, rounded
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner

BF16 = ml_dtypes.bfloat16
IO = GraphSpec(
    "graph",
    (TensorSpec("x", "float32", ("N", 3)),),
    (TensorSpec("y", "float32", ("N", 2)), TensorSpec("kept", "float32", ("N", 3))),
)
# A function like ours: its body's values are bf16 once it is inlined.
TEXT = """
<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
graph (float[N, 3] x) => (float[N, 2] y, float[N, 3] kept)
<bfloat16[3, 2] w, float[3] third>
{
    kept = Mul (x, third)
    narrow = Cast <to = 16> (x)
    product = own.Square <again = 1> (narrow, w)
    y = Cast <to = 1> (product)
}
<domain: "own", opset_import: ["" : 20]>
Square <again> (a, b) => (c)
{
    ab = MatMul (a, b)
    c = Mul (ab, ab)
}
"""


def model(folder: Path, rng: np.random.Generator, external: bool) -> tuple[Path, np.ndarray]:
    made = onnx.parser.parse_model(TEXT)
    weights = rng.standard_normal((3, 2)).astype(BF16)
    for name, array in (("w", weights), ("third", np.full(3, 1 / 3, np.float32))):
        tensor = onnx.numpy_helper.from_array(array, name)
        made.graph.initializer.append(tensor)
    path = folder / "graph.onnx"
    onnx.save(made, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path, weights


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_each_result_is_rounded(
    rows: int, external: bool, tmp_path: Path, rng: np.random.Generator
):
    path, weights = model(tmp_path, rng, external)
    x = rng.standard_normal((rows, 3)).astype(np.float32)
    says = r"can't load graph.onnx: it has no products of bf16 .*--precision fp16 or fp32"
    with pytest.raises(ExportError, match=says), OnnxRuntimeRunner(path, IO):
        pass
    with RoundedBf16Runner(path, IO, threads=1) as runner:
        got = runner.infer({"x": x})
        assert "rounded to bf16" in runner.metadata().runtime
    # Three bf16 products add up exactly in float64, so that rounding is the only error.
    product = x.astype(BF16).astype(np.float64) @ weights.astype(np.float64)
    once = product.astype(np.float32).astype(BF16).astype(np.float32)
    twice = (once * once).astype(BF16).astype(np.float32)
    # fp32 may add up to the other side of a border between two bf16 numbers.
    assert (got["y"] != twice).sum() <= 0.1 * twice.size
    np.testing.assert_allclose(got["y"], twice, rtol=2**-6)
    np.testing.assert_array_equal(got["kept"], x * np.float32(1 / 3))


def test_nothing_of_bf16_is_left_but_the_rounding(tmp_path: Path, rng: np.random.Generator):
    path, _ = model(tmp_path, rng, external=False)
    made = rounded(path)
    onnx.checker.check_model(made, full_check=True)
    assert not made.functions
    assert {t.data_type for t in made.graph.initializer} == {onnx.TensorProto.FLOAT}
    inferred = onnx.shape_inference.infer_shapes(made, strict_mode=True)
    halves = {
        v.name
        for v in inferred.graph.value_info
        if v.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
    }
    for node in made.graph.node:
        if halves & {*node.input, *node.output}:
            assert node.op_type == "Cast"


def test_a_file_that_is_no_model_is_refused(tmp_path: Path):
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"no model")
    with (
        pytest.raises(ExportError, match="can't be run in rounded fp32"),
        RoundedBf16Runner(path, IO),
    ):
        pass

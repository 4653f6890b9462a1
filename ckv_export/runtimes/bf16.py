"""bf16 graphs on ONNX Runtime's CPU provider, which has no bf16 products.

Every operator computes in fp32 and its result is rounded to bf16: what an engine does that adds up
in fp32. It proves the graph, it is not fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import helper, numpy_helper

from ckv_export.errors import ExportError
from ckv_export.runtimes.base import RunnerMetadata
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner, load_module

_BF16, _FP32 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT


class RoundedBf16Runner(OnnxRuntimeRunner):
    """An ONNX file whose bf16 tensors are fp32 tensors of bf16 numbers, on the CPU provider."""

    def _source(self, options: Any) -> str | bytes:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self.path.parent)
        )
        try:
            return rounded(self.path).SerializeToString()
        except Exception as error:  # protobuf and onnx raise several classes of their own
            raise ExportError(f"{self.path.name} can't be run in rounded fp32: {error}") from error

    def _describe(self) -> RunnerMetadata:
        return RunnerMetadata(
            "onnxruntime, rounded to bf16", load_module().__version__, "cpu", self.io.name
        )


def rounded(path: Path) -> onnx.ModelProto:
    """The model at `path` without functions and without a bf16 operator.

    Each tensor that was bf16 is fp32 and rounded where it is made. fp32 weights stay in the file
    where they lie.
    """
    model = onnx.inliner.inline_local_functions(onnx.load(str(path), load_external_data=False))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    half = {v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type == _BF16}
    for tensor in model.graph.initializer:
        if tensor.data_type == _BF16:
            tensor.CopyFrom(_widened(tensor, path.parent))
    nodes = [made for node in model.graph.node for made in _rounded_node(node, half)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    return model


def _widened(tensor: onnx.TensorProto, folder: Path) -> onnx.TensorProto:
    array = numpy_helper.to_array(tensor, str(folder))
    return numpy_helper.from_array(array.astype(np.float32), tensor.name)


def _rounded_node(node: onnx.NodeProto, half: set[str]) -> Iterator[onnx.NodeProto]:
    """`node` in fp32, and after it the rounding of every output that was bf16."""
    made = [name for name in node.output if name in half]
    if node.op_type == "Cast" and made:
        node.attribute[0].i = _FP32
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == _BF16:
            attribute.t.CopyFrom(_widened(attribute.t, Path()))
    for index, name in enumerate(node.output):
        if name in half:
            node.output[index] = f"{name}/exact"
    yield node
    for name in made:
        yield helper.make_node("Cast", [f"{name}/exact"], [f"{name}/bf16"], to=_BF16)
        yield helper.make_node("Cast", [f"{name}/bf16"], [name], to=_FP32)

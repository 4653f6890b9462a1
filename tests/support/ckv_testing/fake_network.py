"""A stand-in for TensorRT's network and parser.

It parses real ONNX files by the rules that decide between plugin and function (a registered creator
of the node's name, version and namespace).
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from ckv_testing import fake_tensorrt
from ckv_testing.fake_tensorrt import DataType

if TYPE_CHECKING:
    from ckv_testing.fake_builder import FakeTensorRt

_TYPES = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.BFLOAT16: DataType.BF16,
    onnx.TensorProto.INT32: DataType.INT32,
    onnx.TensorProto.INT64: DataType.INT64,
    onnx.TensorProto.BOOL: DataType.BOOL,
}


def names(title: str, members: str) -> Any:
    return enum.IntEnum(title, members, start=0)


LayerType = names("LayerType", "NATIVE PLUGIN_V3 CONSTANT")


@dataclass
class Tensor:
    name: str
    dtype: DataType
    shape: tuple[int, ...] = ()


@dataclass
class Layer:
    name: str
    type: Any
    metadata: str
    outputs: list[Tensor]

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.layers: list[Layer] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.weights: dict[str, Any] = {}
        self.marked: list[str] = []

    num_layers = property(lambda self: len(self.layers))
    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]

    def mark_weights_refittable(self, name: str) -> bool:
        if name in self.weights:
            self.marked.append(name)
        return name in self.weights


class Parser:
    num_errors = 0

    def __init__(self, fake: FakeTensorRt, network: Network) -> None:
        self.fake, self.network, self.flags = fake, network, set()

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def parse_from_file(self, path: str) -> bool:
        model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
        bodies = {(f.domain, f.name): f for f in model.functions}
        kinds = {v.name: _kind(v) for v in (*model.graph.value_info, *model.graph.output)}
        self.network.weights = weights_of(path)
        self.network.weights.pop(self.fake.faults.unnamed, None)
        self.network.inputs = [_tensor(v) for v in model.graph.input]
        self.network.outputs = [_tensor(v) for v in model.graph.output]
        for node in model.graph.node:
            outputs = [Tensor(o, kinds.get(o, DataType.FLOAT)) for o in node.output]
            creator = self._creator(node)
            if creator is not None and not self.fake.faults.parser:
                self._instantiate(creator, node)
                self._add(node.name, LayerType.PLUGIN_V3, node.name, outputs)
            elif (node.domain, node.op_type) in bodies:
                for inner in bodies[(node.domain, node.op_type)].node:
                    where = f"node_of_{inner.output[0]} | {node.name} ({node.op_type})"
                    self._add(f"node_of_{inner.output[0]}", LayerType.NATIVE, where, outputs)
            else:
                self._add(node.name, LayerType.NATIVE, node.name, outputs)
        return True

    def _add(self, name: str, kind: Any, where: str, outputs: list[Tensor]) -> None:
        self.network.layers.append(Layer(name, kind, f"[ONNX Layer: {where}]", outputs))

    def _instantiate(self, creator: Any, node: onnx.NodeProto) -> None:
        if not hasattr(creator, "create_plugin"):
            return
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        numbers = {n: v for n, v in values.items() if isinstance(v, int | float)}
        made = fake_tensorrt.Node(node.op_type, numbers, (), ())
        self.fake.plugins[node.name] = fake_tensorrt.create(self.fake.module, made)

    def _creator(self, node: onnx.NodeProto) -> Any:
        named = {a.name: a.s.decode() for a in node.attribute if a.type == a.STRING}
        key = named.get("plugin_version", "1"), named.get("plugin_namespace", "")
        return self.fake.module.get_plugin_registry().get_creator(node.op_type, *key)


def weights_of(path: str | Path) -> dict[str, Any]:
    """Shape, type and hash of each initializer of an ONNX file, by name."""
    tensors = onnx.load(str(path)).graph.initializer
    return {
        t.name: {
            "shape": list(t.dims),
            "type": t.data_type,
            "sha256": hashlib.sha256(onnx.numpy_helper.to_array(t).tobytes()).hexdigest(),
        }
        for t in tensors
    }


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    dims = value.type.tensor_type.shape.dim
    shape = tuple(-1 if d.dim_param else d.dim_value for d in dims)
    return Tensor(value.name, _kind(value), shape)


def _kind(value: onnx.ValueInfoProto) -> DataType:
    return _TYPES.get(value.type.tensor_type.elem_type, DataType.FLOAT)

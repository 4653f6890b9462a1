"""``config.pbtxt`` files, made as messages of Triton's own schema: no field can be misspelt.

With ``max_batch_size`` above 0 a tensor's dims leave out the batch axis; one that has no other axis
is given the dims [1] and reshaped to [].
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckv_export.contract import GraphSpec, TensorSpec
from ckv_export.errors import BundleError, MissingDependency

FILE_NAME = "config.pbtxt"
_TYPES = {"int32": "TYPE_INT32", "float32": "TYPE_FP32", "bool": "TYPE_BOOL"}
_PLATFORMS = {
    "onnx": ("onnxruntime", "onnxruntime_onnx", "model.onnx"),
    "tensorrt": ("tensorrt", "tensorrt_plan", "model.plan"),
}


@dataclass(frozen=True)
class GraphModel:
    """A graph as a model of its own.

    `max_batch`: B. `sizes`: of every other axis, for the warm-up. `plans`: file names of TensorRT
    plans by compute capability ("8.6"). `delay`: microseconds that a request waits for others.
    """

    name: str
    io: GraphSpec
    platform: str
    max_batch: int
    sizes: Mapping[str, int]
    instances: int = 1
    delay: int = 0
    plans: Mapping[str, str] | None = None


@dataclass(frozen=True)
class ScorerModel:
    """The orchestrating model; `inputs`: of one request, without the batch axis."""

    name: str
    inputs: tuple[TensorSpec, ...]
    max_batch: int
    parameters: Mapping[str, str]
    instances: int = 1
    delay: int = 0


def graph_config(model: GraphModel) -> str:
    """``config.pbtxt`` of prefill or decode."""
    config = _schema().ModelConfig()
    backend, platform, file = _PLATFORMS[model.platform]
    config.name, config.backend, config.platform = model.name, backend, platform
    config.default_model_filename = file
    config.max_batch_size = model.max_batch
    for tensor in model.io.inputs:
        _add_tensor(config.input.add(), tensor)
    for tensor in model.io.outputs:
        _add_tensor(config.output.add(), tensor)
    _add_batching(config, model.max_batch, model.delay)
    group = config.instance_group.add(count=model.instances)
    if model.platform == "tensorrt":
        group.kind = group.KIND_GPU
        group.profile.append("0")
        config.cc_model_filenames.update(model.plans or {})
    _add_warmup(config, model)
    return _text(config)


def scorer_config(model: ScorerModel) -> str:
    """``config.pbtxt`` of the orchestrating model."""
    config = _schema().ModelConfig()
    config.name, config.backend = model.name, "python"
    config.max_batch_size = model.max_batch
    config.input.add(name="user_id", data_type=_type("TYPE_STRING"), dims=[1])
    for tensor in model.inputs:
        # Requests of different sizes share a call: the model pads them itself.
        added = config.input.add(allow_ragged_batch=True, optional=tensor.name.startswith("append"))
        _add_tensor(added, TensorSpec(tensor.name, tensor.dtype, ("B", *(tensor.axes or (1,)))))
    mask = TensorSpec("append_mask", "bool", ("B", "T"))
    _add_tensor(config.input.add(optional=True, allow_ragged_batch=True), mask)
    config.input.add(name="append_id", data_type=_type("TYPE_STRING"), dims=[1], optional=True)
    _add_tensor(config.output.add(), TensorSpec("score", "float32", ("B", "C")))
    config.output.add(name="events", data_type=_type("TYPE_INT64"), dims=[1])
    _add_batching(config, model.max_batch, model.delay)
    group = config.instance_group.add(count=model.instances)
    group.kind = group.KIND_CPU
    for name, value in model.parameters.items():
        config.parameters[name].string_value = value
    return _text(config)


def parse_config(text: str) -> Any:
    """`text` as a message of the schema; raises `BundleError` for anything that it doesn't know."""
    text_format = importlib.import_module("google.protobuf.text_format")
    try:
        return text_format.Parse(text, _schema().ModelConfig())
    except text_format.ParseError as error:
        raise BundleError(f"Triton's schema refuses a {FILE_NAME}: {error}") from error


def _add_tensor(message: Any, tensor: TensorSpec) -> None:
    message.name, message.data_type = tensor.name, _type(_TYPES[tensor.dtype])
    message.dims.extend(-1 if isinstance(axis, str) else axis for axis in tensor.axes[1:])
    if not message.dims:
        message.dims.append(1)
        message.reshape.SetInParent()


def _add_batching(config: Any, max_batch: int, delay: int) -> None:
    batching = config.dynamic_batching
    batching.preferred_batch_size.append(max_batch)
    batching.max_queue_delay_microseconds = delay


def _add_warmup(config: Any, model: GraphModel) -> None:
    """Zeros of the most usual sizes: id 0 and row 0 are in every table."""
    for batch in sorted({1, model.max_batch}):
        warmup = config.model_warmup.add(name=f"zeros_{batch}", batch_size=batch)
        for tensor in model.io.inputs:
            made = warmup.inputs[tensor.name]
            made.data_type, made.zero_data = _type(_TYPES[tensor.dtype]), True
            shape = TensorSpec(tensor.name, tensor.dtype, tensor.axes[1:]).shape(model.sizes)
            made.dims.extend(shape or (1,))


def _text(config: Any) -> str:
    text = importlib.import_module("google.protobuf.text_format").MessageToString(config)
    assert parse_config(text) == config
    return str(text)


def _type(name: str) -> int:
    return int(_schema().DataType.Value(name))


def _schema() -> Any:
    try:
        return importlib.import_module("tritonclient.grpc.model_config_pb2")
    except ImportError as error:
        raise MissingDependency("tritonclient", "writing a Triton repository", "triton") from error

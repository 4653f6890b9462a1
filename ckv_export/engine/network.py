"""ONNX file -> TensorRT network, checked against the contract's names, dtypes and axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckv_export.contract import GraphSpec, TensorSpec
from ckv_export.engine.backends import Backend
from ckv_export.engine.layers import Layer, network_layers
from ckv_export.engine.messages import Messages, readable
from ckv_export.errors import EngineError, nearest

DTYPES = {
    "bool": "BOOL",
    "int32": "INT32",
    "int64": "INT64",
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
}
"""numpy dtype name -> name in the library's ``DataType``."""

DYNAMIC = -1
"""Size of a dynamic axis as the library reports it."""


@dataclass(frozen=True)
class EngineTensor:
    """One input or output as the parsed network has it; a dynamic axis has size -1."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EngineTensor:
        """Read what `dataclasses.asdict` gives."""
        return cls(data["name"], data["dtype"], tuple(data["shape"]))

    def __str__(self) -> str:
        sizes = ("?" if size == DYNAMIC else str(size) for size in self.shape)
        return f"{self.dtype} [{', '.join(sizes)}]"


@dataclass(frozen=True)
class ParsedNetwork:
    """A network together with the parser that owns its weights: keep both until built."""

    network: Any
    parser: Any
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]

    @property
    def layers(self) -> int:
        """Layers before the optimizer fuses them."""
        return int(self.network.num_layers)

    @property
    def plugins(self) -> tuple[str, ...]:
        """Names of the layers that a plugin computes; () when every op is a standard one."""
        return tuple(layer.name for layer in self.layer_list() if layer.is_plugin)

    def layer_list(self) -> tuple[Layer, ...]:
        """Every layer, before fusion."""
        return network_layers(self.network)


def parse_onnx(
    onnx: Path, backend: Backend, builder: Any, logger: Any, messages: Messages
) -> ParsedNetwork:
    """Read the ONNX file (external data beside it included) into a strongly typed network.

    Raises `EngineError` naming the first node the parser refuses, or what was said in
    `messages`, which `logger` fills, where no node is to blame.
    """
    module = backend.module
    network = builder.create_network(_creation_flags(module))
    parser = module.OnnxParser(network, logger)
    _prefer_plugins(parser, module)
    # By path, not by bytes: the parser finds external weights only beside a file.
    if not parser.parse_from_file(str(onnx)):
        raise EngineError(_refusal(onnx, backend, parser, messages))
    inputs = tuple(_read(module, network.get_input(i)) for i in range(network.num_inputs))
    outputs = tuple(_read(module, network.get_output(i)) for i in range(network.num_outputs))
    return ParsedNetwork(network, parser, inputs, outputs)


def check_tensors(parsed: ParsedNetwork, spec: GraphSpec, onnx: Path) -> None:
    """Raise `EngineError` listing every input and output that differs from `spec`."""
    if not parsed.inputs and not parsed.outputs:
        # The parser reads any bytes as an empty model.
        raise EngineError(f"{onnx} holds no graph: is it an ONNX file?")
    faults = [
        *_differences("input", parsed.inputs, spec.inputs),
        *_differences("output", parsed.outputs, spec.outputs),
    ]
    if faults:
        raise EngineError(f"{onnx} is no {spec.name} graph of this model: {'; '.join(faults)}")


def _creation_flags(module: Any) -> int:
    # TensorRT 10 needs the first for strong types, TensorRT 11 and RTX know no other kind. The
    # second says that kernels of a Python plugin go into the engine, where it is built with one.
    names = ("STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS")
    flags = (getattr(module.NetworkDefinitionCreationFlag, name, None) for name in names)
    return sum(1 << int(flag) for flag in flags if flag is not None)


def _prefer_plugins(parser: Any, module: Any) -> None:
    # From 10.15 on a function wins over a registered plugin, unless its node names a namespace
    # (ours do) or this is set. `set_flag` adds; assigning `flags` would drop the default ones.
    override = getattr(module.OnnxParserFlag, "ENABLE_PLUGIN_OVERRIDE", None)
    if override is not None:
        parser.set_flag(override)


def _read(module: Any, tensor: Any) -> EngineTensor:
    names = {getattr(module.DataType, theirs, None): ours for ours, theirs in DTYPES.items()}
    dtype = names.get(tensor.dtype, str(tensor.dtype.name).lower())
    return EngineTensor(tensor.name, dtype, tuple(tensor.shape))


def _differences(
    what: str, found: tuple[EngineTensor, ...], wanted: tuple[TensorSpec, ...]
) -> list[str]:
    by_name = {tensor.name: tensor for tensor in found}
    faults = []
    for spec in wanted:
        tensor = by_name.pop(spec.name, None)
        if tensor is None:
            faults.append(f"{what} {spec.name!r} is missing{nearest(spec.name, by_name)}")
        elif not _matches(tensor, spec):
            faults.append(f"{what} {spec.name!r} is {tensor}, must be {_describe(spec)}")
    return faults + [f"{what} {name!r} is unknown" for name in by_name]


def _matches(tensor: EngineTensor, spec: TensorSpec) -> bool:
    same_rank = len(tensor.shape) == len(spec.axes)
    return (
        tensor.dtype == spec.dtype
        and same_rank
        and all(
            # An axis the graph fixes is narrower than the contract: ranges would not fit it.
            size == (DYNAMIC if isinstance(axis, str) else axis)
            for size, axis in zip(tensor.shape, spec.axes, strict=True)
        )
    )


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype} [{', '.join(map(str, spec.axes))}]"


def _refusal(onnx: Path, backend: Backend, parser: Any, messages: Messages) -> str:
    error = parser.get_error(0) if parser.num_errors else None
    if error is None or not error.node_name():
        # Such as external weights that are absent or cut off: only the log says which.
        told = messages.first_error()
        reason = told or (_reason(error) if error else "the parser gives no reason")
        return f"{backend.label} can't read {onnx}: {reason}"
    where = f" at node {error.node_name()!r} ({error.node_operator()})"
    stack = error.local_function_stack() if hasattr(error, "local_function_stack") else []
    inside = f" in the function of node {stack[0]}" if stack else ""
    return f"{backend.label} can't take {onnx}{where}{inside}: {_reason(error)}"


def _reason(error: Any) -> str:
    """Say what is wrong, from the parser's description of a failed C++ assertion."""
    text = str(error.desc()).strip()
    lines = text.splitlines()
    if len(lines) > 1:
        # "Invalid Node - mm" and below it what the layer itself said.
        return readable(lines[1])
    quoted = text.rpartition('&& "')[2].rstrip('". ') if '&& "' in text else ""
    if quoted:
        return quoted
    if text in ("false", ""):
        return f"the operator {error.node_operator()} is not supported"
    if text.startswith("Assertion failed: "):
        # "Assertion failed: <C++ condition>: <what is wrong>"
        return text.split(": ", 2)[-1]
    return readable(text)

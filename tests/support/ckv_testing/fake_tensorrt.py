"""A stand-in for the compiled half of ``tensorrt``, under NVIDIA's own ``tensorrt.plugin``.

That package is Python and comes in the wheel ``tensorrt-cu13-bindings``; what it is built on are
classes of the C++ bindings, which don't load without libnvinfer. Here they are plain Python, and a
dimension expression is a function of the sizes of a call.
"""

from __future__ import annotations

import enum
import importlib.util
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

HOW = "pip install --no-deps tensorrt-cu13-bindings"

DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT32 INT64 INT8 BOOL UINT8")
Operation = enum.Enum(
    "Operation", "SUM PROD MAX MIN SUB EQUAL LESS FLOOR_DIV CEIL_DIV", module=__name__
)
Request = enum.Enum("Request", "UNKNOWN PREFER_JIT PREFER_AOT STRICT_JIT STRICT_AOT")
Format = enum.Enum("Format", "LINEAR CHW2 HWC8")
Field = enum.Enum("Field", "FLOAT16 FLOAT32 FLOAT64 INT8 INT16 INT32 INT64 CHAR DIMS BF16 UNKNOWN")

_ARITHMETIC: Mapping[Operation, Callable[[int, int], int]] = {
    Operation.SUM: operator.add,
    Operation.PROD: operator.mul,
    Operation.MAX: max,
    Operation.MIN: min,
    Operation.SUB: operator.sub,
    Operation.EQUAL: operator.eq,
    Operation.LESS: operator.lt,
    Operation.FLOOR_DIV: operator.floordiv,
    Operation.CEIL_DIV: lambda a, b: -(-a // b),
}


class Expression:
    """An ``IDimensionExpr``: a number, a named size, or an operation on two others."""

    def __init__(self, value: Callable[[Mapping[str, int]], int], constant: bool) -> None:
        self.value, self.constant = value, constant

    def is_constant(self) -> bool:
        return self.constant

    def get_constant_value(self) -> int:
        assert self.constant, "asked for the value of a dynamic size"
        return self.value({})


def size(axis: int | str) -> Expression:
    if isinstance(axis, int):
        return Expression(lambda sizes: axis, True)
    return Expression(lambda sizes: sizes[axis], False)


class ExpressionBuilder:
    """An ``IExprBuilder``."""

    def constant(self, value: int) -> Expression:
        return size(value)

    def operation(self, op: Operation, a: Expression, b: Expression) -> Expression:
        assert isinstance(a, Expression)
        assert isinstance(b, Expression)
        compute = _ARITHMETIC[op]
        return Expression(
            lambda sizes: compute(a.value(sizes), b.value(sizes)), a.constant and b.constant
        )


class DimsExprs(list[Expression]):
    def __init__(self, length: int) -> None:
        super().__init__([size(0)] * length)


class PluginTensorDesc:
    def __init__(self) -> None:
        self.dims: tuple[int, ...] = ()
        self.type, self.format, self.scale = DataType.FLOAT, Format.LINEAR, 1.0


@dataclass
class DynamicPluginTensorDesc:
    desc: PluginTensorDesc
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass
class PluginField:
    name: str
    data: Any
    type: Field


class PluginFieldCollection(list[PluginField]):
    pass


class Registry:
    """``IPluginRegistry``; `libraries`: what a library's file registers, by name of operator."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}
        self.libraries: dict[str, Sequence[str]] = {}

    @property
    def all_creators(self) -> list[Any]:
        return list(self.creators.values())

    def register_creator(self, creator: Any, namespace: str) -> bool:
        self.creators[(creator.name, creator.plugin_version, namespace)] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators.get((name, version, namespace))


class Logger:
    WARNING = "warning"

    def log(self, level: Any, text: str) -> None: ...


def base(name: str) -> type:
    return type(name, (), {"__init__": lambda self, *_: None})


def bindings() -> ModuleType:
    """A new module ``tensorrt`` with a registry of its own."""
    module = ModuleType("tensorrt")
    registry = Registry()
    for name in (
        *("IPluginV3", "IPluginV3QuickCore", "IPluginV3QuickBuild", "IPluginV3QuickRuntime"),
        *("IPluginV3QuickAOTBuild", "IPluginCreatorV3Quick", "ISymExpr", "ITensor"),
    ):
        setattr(module, name, base(name))
    named = {
        "DataType": DataType,
        "float32": DataType.FLOAT,
        "DimensionOperation": Operation,
        "IDimensionExpr": Expression,
        "IExprBuilder": ExpressionBuilder,
        "DimsExprs": DimsExprs,
        "Dims": type("Dims", (), {"MAX_DIMS": 8}),
        "PluginTensorDesc": PluginTensorDesc,
        "DynamicPluginTensorDesc": DynamicPluginTensorDesc,
        "PluginField": PluginField,
        "PluginFieldCollection": PluginFieldCollection,
        "PluginFieldType": Field,
        "QuickPluginCreationRequest": Request,
        "TensorFormat": Format,
        "TensorRTPhase": enum.Enum("TensorRTPhase", "BUILD RUNTIME"),
        "PluginArgType": enum.Enum("PluginArgType", "INT"),
        "PluginArgDataType": enum.Enum("PluginArgDataType", "INT8 INT16 INT32"),
        "Logger": Logger,
        "get_plugin_registry": lambda: registry,
        "__version__": "11.4.0",
    }
    for name, value in named.items():
        setattr(module, name, value)
    return module


def plugin_folder() -> Path | None:
    """Where the wheel's ``plugin`` package lies; None where the wheel is not installed."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [Path(folder) / "plugin" for folder in folders]
    return next((folder for folder in found if (folder / "__init__.py").is_file()), None)


def installed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`bindings` as the module ``tensorrt``, with the real ``tensorrt.plugin`` on top."""
    folder = plugin_folder()
    if folder is None:
        pytest.skip(f"NVIDIA's tensorrt.plugin is not installed: {HOW}")
    module = bindings()
    for name in [n for n in sys.modules if n == "tensorrt" or n.startswith("tensorrt.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    spec = importlib.util.spec_from_file_location(
        "tensorrt.plugin", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", package)
    spec.loader.exec_module(package)
    return module


def forget() -> None:
    """Drop what `installed` imported besides the package itself."""
    for name in [n for n in sys.modules if n.startswith("tensorrt.plugin.")]:
        del sys.modules[name]


@dataclass(frozen=True)
class Built:
    """What a plugin answered for one tactic: kernel, grid and integers as functions of sizes."""

    symbol: str
    ptx: bytes
    params: Any
    numbers: Sequence[Any]

    def grid(self, sizes: Mapping[str, int]) -> tuple[int, int, int]:
        names = ("grid_x", "grid_y", "grid_z")
        x, y, z = (getattr(self.params, name).expr.value(sizes) for name in names)
        return x, y, z

    def threads(self, sizes: Mapping[str, int]) -> int:
        names = ("block_x", "block_y", "block_z")
        x, y, z = (getattr(self.params, name).expr.value(sizes) for name in names)
        return x * y * z

    def shared(self, sizes: Mapping[str, int]) -> int:
        return self.params.shared_mem.expr.value(sizes)

    def integers(self, sizes: Mapping[str, int]) -> list[int]:
        return [number.expr.value(sizes) for number in self.numbers]


class SymExprs(dict[int, Any]):
    nbSymExprs = 0  # noqa: N815


@dataclass(frozen=True)
class Node:
    """A node of the ONNX graph as the parser hands it to a creator."""

    operator: str
    attributes: Mapping[str, int | float]
    shapes: Sequence[tuple[int | str, ...]]
    types: Sequence[DataType]


def create(module: ModuleType, node: Node) -> Any:
    """The plugin of a node, as the parser asks for it."""
    creator = module.get_plugin_registry().get_creator(node.operator, "1", "ckv")
    return creator.create_plugin(
        node.operator, "ckv", _fields(module, node), module.TensorRTPhase.BUILD, Request.UNKNOWN
    )


def build(module: ModuleType, node: Node, sizes: Mapping[str, int]) -> Iterator[tuple[int, Built]]:
    """Do with a plugin what TensorRT does while it builds: yields each tactic with its answer.

    `sizes`: those for which the autotuner would time it.
    """
    plugin = create(module, node)
    builder = ExpressionBuilder()
    out_types = plugin.get_output_data_types(list(node.types), [len(s) for s in node.shapes])
    dims = [_dims(shape) for shape in node.shapes]
    out_dims = plugin.get_output_shapes(dims, [], builder)
    in_out = [
        _desc(dims_, sizes, kind)
        for dims_, kind in zip([*dims, *out_dims], [*node.types, *out_types], strict=True)
    ]
    count = len(dims)
    combinations = plugin.get_supported_format_combinations(in_out, count)
    assert [c.type for c in combinations] == [d.desc.type for d in in_out]
    plugin.configure_plugin(in_out[:count], in_out[count:])
    for tactic in plugin.get_valid_tactics() or [0]:
        chosen = plugin.clone()
        chosen.set_tactic(tactic)
        params, numbers = ModuleType("params"), SymExprs()
        chosen.get_launch_params(dims, in_out, count, params, numbers, builder)
        inner = [d.desc for d in in_out]
        symbol, ptx = chosen.get_kernel(inner[:count], inner[count:])
        assert sorted(numbers) == list(range(numbers.nbSymExprs))
        yield tactic, Built(symbol, ptx, params, [numbers[i] for i in sorted(numbers)])


def output_shape(
    module: ModuleType, node: Node, sizes: Mapping[str, int]
) -> tuple[tuple[int, ...], DataType]:
    """Shape and type of a node's output."""
    plugin = create(module, node)
    (kind,) = plugin.get_output_data_types(list(node.types), [len(s) for s in node.shapes])
    (dims,) = plugin.get_output_shapes(
        [_dims(shape) for shape in node.shapes], [], ExpressionBuilder()
    )
    return tuple(d.value(sizes) for d in dims), kind


def _fields(module: ModuleType, node: Node) -> PluginFieldCollection:
    # The parser makes int32 and float32 fields of the attributes that the creator names, in its
    # order, in which tensorrt.plugin hands them on.
    creator = module.get_plugin_registry().get_creator(node.operator, "1", "ckv")
    names = [field.name for field in creator.field_names if field.name in node.attributes]
    kinds = {int: (np.int32, Field.INT32), float: (np.float32, Field.FLOAT32)}
    return PluginFieldCollection(
        PluginField(name, np.array([value], kinds[type(value)][0]), kinds[type(value)][1])
        for name, value in ((name, node.attributes[name]) for name in names)
    )


def _dims(shape: Sequence[int | str]) -> DimsExprs:
    dims = DimsExprs(len(shape))
    dims[:] = [size(axis) for axis in shape]
    return dims


def _desc(dims: DimsExprs, sizes: Mapping[str, int], kind: DataType) -> DynamicPluginTensorDesc:
    desc = PluginTensorDesc()
    desc.dims = tuple(d.get_constant_value() if d.is_constant() else -1 for d in dims)
    desc.type = kind
    extents = tuple(d.value(sizes) for d in dims)
    return DynamicPluginTensorDesc(desc, extents, extents, extents)

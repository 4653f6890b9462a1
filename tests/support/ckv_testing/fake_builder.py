"""A stand-in for the full TensorRT that builds: parser, registry, builder, engine and inspector.

It parses real ONNX files by the rules that decide between plugin and function (a registered creator
of the node's name, version and namespace), and its engines are JSON texts of what was built.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from ckv_export.engine import Backend, aot_plugin, plugin_library, targets
from ckv_testing import fake_tensorrt
from ckv_testing.fake_tensorrt import DataType

GPU = "sm90"

_TYPES = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.BFLOAT16: DataType.BF16,
    onnx.TensorProto.INT32: DataType.INT32,
    onnx.TensorProto.INT64: DataType.INT64,
    onnx.TensorProto.BOOL: DataType.BOOL,
}
_OFFICIAL = {DataType.FLOAT: "Float", DataType.HALF: "Half", DataType.BF16: "BFloat16"}


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


class Creator:
    """What a library registers."""

    plugin_version = "1"
    plugin_namespace = "ckv"

    def __init__(self, name: str) -> None:
        self.name = name


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shapes[name] = shapes


class TimingCache:
    """A cache of this version and GPU begins with a header that says so."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        known = self.data.splitlines(keepends=True)
        self.data += b"".join(x for x in other.data.splitlines(keepends=True) if x not in known)
        return True


HEADER = b"timings of 11.4.0 on sm90\n"


class Config:
    def __init__(self, module: Any) -> None:
        self.module = module
        self.flags: set[Any] = {module.BuilderFlag.TF32}
        self.profiles: list[Profile] = []
        self.limits: dict[Any, int] = {}
        self.cache: TimingCache | None = None
        self.plugins_to_serialize: list[str] = []
        self.profiling_verbosity = module.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = module.HardwareCompatibilityLevel.NONE

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.limits[pool] = size

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> TimingCache | None:
        # Bytes that are no cache at all give none.
        return TimingCache(data or HEADER) if not data or data.startswith(b"timings") else None

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        fits = ignore_mismatch or cache.data.startswith(HEADER)
        self.cache = cache if fits else None
        return fits

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache


@dataclass
class Faults:
    """What shall go wrong: `parser` overlooks plugins, `engine` loses their layers.

    `unnamed`: a weight that the parser gives no name; `fixed`: one that an engine keeps;
    `combined`: one that an engine has and no file does; `refit`, `serialize`: the library refuses.
    """

    parser: bool = False
    engine: bool = False
    unnamed: str = ""
    fixed: str = ""
    combined: str = ""
    refit: bool = False
    serialize: bool = False


@dataclass
class FakeTensorRt:
    """The module with what a test wants to see of its use."""

    module: ModuleType
    backend: Backend
    faults: Faults = field(default_factory=Faults)
    configs: list[Config] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    plugins: dict[str, Any] = field(default_factory=dict)


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


class Builder:
    def __init__(self, fake: FakeTensorRt) -> None:
        self.fake = fake

    def create_network(self, flags: int) -> Network:
        self.fake.networks.append(Network(flags))
        return self.fake.networks[-1]

    def create_builder_config(self) -> Config:
        self.fake.configs.append(Config(self.fake.module))
        return self.fake.configs[-1]

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        layers = [_inspected(layer, self.fake.faults.engine) for layer in network.layers]
        if config.cache is not None:
            config.cache.data += b"one more\n"
        told = {"Layers": layers * len(config.profiles), "I/O Tensors": []}
        refit = self.fake.module.BuilderFlag.REFIT_INDIVIDUAL in config.flags
        weights = {"all": network.weights, "refittable": network.marked if refit else []}
        return json.dumps({"inspector": told, "weights": weights}).encode()


def _inspected(layer: Layer, loses_plugins: bool) -> dict[str, Any]:
    plugin = layer.type == LayerType.PLUGIN_V3 and not loses_plugins
    return {
        "Name": layer.name,
        "LayerType": "PluginV3" if plugin else "kgen",
        "Metadata": layer.metadata,
        "Outputs": [
            {"Name": t.name, "Format/Datatype": _OFFICIAL.get(t.dtype, t.dtype.name)}
            for t in layer.outputs
        ],
    }


class Runtime:
    """Loads what `Builder` wrote."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: Any) -> Any:
        try:
            return Engine(json.loads(bytes(plan)))
        except ValueError:
            return None


@dataclass
class Engine:
    data: dict[str, Any]
    faults: Faults = field(default_factory=Faults)

    @property
    def refittable(self) -> bool:
        return bool(self.data["weights"]["refittable"])

    def create_engine_inspector(self) -> Engine:
        return self

    def get_engine_information(self, form: Any) -> str:
        return json.dumps(self.data["inspector"])

    def create_serialization_config(self) -> SerializationConfig:
        return SerializationConfig()

    def serialize_with_config(self, config: SerializationConfig) -> bytes | None:
        data = json.loads(json.dumps(self.data))
        weights = data["weights"]
        if config.get_flag("EXCLUDE_WEIGHTS"):
            weights["all"] = {n: v for n, v in weights["all"].items() if not self.refittable}
        if not config.get_flag("INCLUDE_REFIT"):
            weights["refittable"] = []
        return None if self.faults.serialize else json.dumps(data).encode()


class SerializationConfig:
    """As an engine gives it at first: weights left out, and refittable no longer."""

    def __init__(self) -> None:
        self.names = {"EXCLUDE_WEIGHTS"}

    def set_flag(self, flag: Any) -> bool:
        self.names.add(flag.name)
        return True

    def clear_flag(self, flag: Any) -> bool:
        self.names.discard(flag.name)
        return True

    def get_flag(self, name: str) -> bool:
        return name in self.names


class Refitter:
    """Takes values by name, and gives them to the engine all at once."""

    def __init__(self, engine: Engine, faults: Faults) -> None:
        assert engine.refittable, "made for an engine that can't be refitted"
        engine.faults = faults
        self.engine, self.faults = engine, faults
        self.given: dict[str, Any] = {}

    def get_all_weights(self) -> list[str]:
        names: list[str] = self.engine.data["weights"]["refittable"]
        return [name for name in names if name != self.faults.fixed]

    def get_missing_weights(self) -> list[str]:
        wanted = {
            *self.get_all_weights(),
            *([self.faults.combined] if self.faults.combined else []),
        }
        return sorted(wanted - self.given.keys())

    def set_named_weights(self, name: str, weights: Any) -> bool:
        shape = self.engine.data["weights"]["all"].get(name, {}).get("shape")
        if name not in self.get_all_weights() or shape != weights["shape"]:
            return False
        self.given[name] = weights
        return True

    def refit_cuda_engine(self) -> bool:
        if self.faults.refit or self.get_missing_weights():
            return False
        self.engine.data["weights"]["all"].update(self.given)
        return True


@dataclass
class ParserError:
    text: str

    def desc(self) -> str:
        return self.text


class OnnxParserRefitter:
    """Sets what an ONNX file holds of an engine's refittable weights."""

    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self.refitter = refitter
        self.errors: list[ParserError] = []

    num_errors = property(lambda self: len(self.errors))

    def get_error(self, index: int) -> ParserError:
        return self.errors[index]

    def refit_from_file(self, model: str) -> bool:
        found, wanted = weights_of(model), self.refitter.get_all_weights()
        done = [n for n in wanted if n in found and self.refitter.set_named_weights(n, found[n])]
        if len(done) < len(wanted):
            told = f"Only successfully refitted {len(done)} weights out of {len(wanted)}"
            self.errors.append(ParserError(told))
        return not self.errors


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


def _logger() -> type:
    class ILogger:
        Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

        def __init__(self) -> None: ...

    return ILogger


ENUMS = {
    "BuilderFlag": "TF32 VERSION_COMPATIBLE EXCLUDE_LEAN_RUNTIME REFIT REFIT_INDIVIDUAL",
    "SerializationFlag": "EXCLUDE_WEIGHTS EXCLUDE_LEAN_RUNTIME INCLUDE_REFIT",
    "ProfilingVerbosity": "LAYER_NAMES_ONLY DETAILED NONE",
    "HardwareCompatibilityLevel": "NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY",
    "MemoryPoolType": "WORKSPACE",
    "LayerInformationFormat": "ONELINE JSON",
    "OnnxParserFlag": "NATIVE_INSTANCENORM ENABLE_PLUGIN_OVERRIDE",
    "NetworkDefinitionCreationFlag": "EXPLICIT_BATCH PREFER_AOT_PYTHON_PLUGINS",
}


def install(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None = None) -> FakeTensorRt:
    """The stand-in, on a machine with a GPU, in a process that has loaded no plugin."""
    module = module or fake_tensorrt.bindings()
    fake = FakeTensorRt(module, Backend("tensorrt", module, module.__version__))
    for name, members in ENUMS.items():
        setattr(module, name, names(name, members))
    parts: dict[str, Any] = {
        "ILogger": _logger(),
        "IProgressMonitor": fake_tensorrt.base("IProgressMonitor"),
        "Builder": lambda logger: Builder(fake),
        "OnnxParser": lambda network, logger: Parser(fake, network),
        "Runtime": Runtime,
        "Refitter": lambda engine, logger: Refitter(engine, fake.faults),
        "OnnxParserRefitter": OnnxParserRefitter,
    }
    for name, part in parts.items():
        setattr(module, name, part)
    registry = module.get_plugin_registry()
    registry.load_library = _loader(fake, registry)
    monkeypatch.setattr(plugin_library, "_loaded", {})
    monkeypatch.setattr(aot_plugin, "_state", {})
    monkeypatch.setattr(targets, "present_gpu", lambda: GPU)
    monkeypatch.setattr("ckv_export.engine.inspection.present_gpu", lambda: GPU)
    monkeypatch.setattr("ckv_export.engine.messages._loggers", {})
    return fake


def _loader(fake: FakeTensorRt, registry: Any) -> Callable[[str], object | None]:
    def load_library(path: str) -> object | None:
        fake.loaded.append(path)
        words = Path(path).read_text().split()
        if not words:
            return None
        for word in words:
            registry.register_creator(Creator(word), "ckv")
        return object()

    return load_library


def write_library(
    folder: Path, operators: Sequence[str], version: str = "11.4.0", **record: object
) -> Path:
    """A library that registers `operators`, with its record, as `ckv-export plugin build` would."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"libckv_plugins_trt{version.split('.')[0]}.so"
    file.write_text(" ".join(operators))
    data: dict[str, object] = {
        "schema_version": 1,
        "operator_version": "1",
        "tensorrt": version,
        "targets": ["sm80", "sm90"],
        "files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest()},
    }
    (folder / "plugins.json").write_text(json.dumps(data | record))
    return file

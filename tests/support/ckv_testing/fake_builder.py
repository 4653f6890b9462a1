"""A stand-in for the full TensorRT that builds: the module, its registry and its builder."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ckv_export.engine import Backend, aot_plugin, plugin_library, targets
from ckv_testing import fake_tensorrt
from ckv_testing.fake_built import Faults, OnnxParserRefitter, Refitter, Runtime
from ckv_testing.fake_config import Config, Profile
from ckv_testing.fake_network import Layer, LayerType, Network, Parser, names
from ckv_testing.fake_tensorrt import DataType

GPU = "sm90"

_OFFICIAL = {DataType.FLOAT: "Float", DataType.HALF: "Half", DataType.BF16: "BFloat16"}


class Creator:
    """What a library registers."""

    plugin_version = "1"
    plugin_namespace = "ckv"

    def __init__(self, name: str) -> None:
        self.name = name


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

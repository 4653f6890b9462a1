"""A stand-in for a built engine, and for what loads, inspects, serializes and refits it.

An engine is a JSON text of what was built.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ckv_testing.fake_network import weights_of


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


class Runtime:
    """Loads what `Builder` wrote."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: Any) -> Any:
        try:
            return Engine(json.loads(bytes(plan)))
        except ValueError:
            self.logger.log(self.logger.Severity.ERROR, "Error Code 1: Serialization (no engine)")
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

"""What a network or an engine consists of: layers by type, precision by part of the model.

Two sources say it. The network, parsed and not yet optimised, has a layer for each operator and,
being strongly typed, the very types that the engine will have. The built engine has the fused
layers that run, but can be read only where it can be loaded: on a GPU that it is for.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

NETWORK = "network before fusion"
ENGINE = "built engine"

TOP = "(top level)"
"""Part of the operators that stand in no module of the model."""

POOL_STEP = "(pool step)"
"""Part of the nodes that read a pool, wherever they stand."""

_PRECISIONS = {
    "FLOAT": "fp32",
    "FP32": "fp32",
    "HALF": "fp16",
    "FP16": "fp16",
    "BF16": "bf16",
    "BFLOAT16": "bf16",
    "FP8": "fp8",
    "FP4": "fp4",
}
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True)
class Layer:
    """One layer: its name and type, the ONNX nodes it computes, precisions of what it writes."""

    name: str
    type: str
    nodes: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()

    @property
    def is_plugin(self) -> bool:
        """Whether a plugin computes it."""
        return "plugin" in self.type.lower()


@dataclass(frozen=True)
class LayerReport:
    """The layers of one graph and where that was read.

    `pool_steps`: who computes each node that reads a pool; `inspector`: what the engine's own
    inspector says, None where only the network could be read.
    """

    source: str
    layers: tuple[Layer, ...]
    pool_steps: Mapping[str, str] = field(default_factory=dict)
    inspector: Any = None

    @property
    def types(self) -> dict[str, int]:
        """How many layers of each type, the most frequent first."""
        return dict(Counter(layer.type for layer in self.layers).most_common())

    @property
    def parts(self) -> dict[str, dict[str, int]]:
        """Module of the model -> precision -> layers that write it; integers and masks left out."""
        parts: dict[str, Counter[str]] = {}
        for layer in self.layers:
            for part in dict.fromkeys(map(self._part, layer.nodes)):
                parts.setdefault(part, Counter()).update(layer.precisions)
        return {part: dict(counts) for part, counts in sorted(parts.items()) if counts}

    def _part(self, node: str) -> str:
        return POOL_STEP if node in self.pool_steps else part_of(node)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerReport:
        """Read `to_dict` data."""
        layers = tuple(
            Layer(x["name"], x["type"], tuple(x["nodes"]), tuple(x["precisions"]))
            for x in data["layers"]
        )
        return cls(data["source"], layers, data["pool_steps"], data["inspector"])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "source": self.source,
            "layer_count": len(self.layers),
            "types": self.types,
            "precisions": self.parts,
            "pool_steps": dict(self.pool_steps),
            "layers": [
                {
                    "name": layer.name,
                    "type": layer.type,
                    "nodes": list(layer.nodes),
                    "precisions": list(layer.precisions),
                }
                for layer in self.layers
            ],
            "inspector": self.inspector,
        }


def part_of(node: str) -> str:
    """The module that an ONNX node stands in: ``attention/k/router`` of ``.../MatMul_0``.

    Numbers are left out, so that repeated modules count together.
    """
    modules = [name for name in node.split("/")[:-1] if not name.isdecimal()]
    return "/".join(modules) or TOP


def network_layers(network: Any) -> tuple[Layer, ...]:
    """The layers of a parsed network."""
    return tuple(_network_layer(network.get_layer(i)) for i in range(network.num_layers))


def inspected_layers(text: str) -> tuple[tuple[Layer, ...], Any]:
    """The layers in an inspector's JSON, and that JSON; raises ValueError where it is none.

    Without detailed verbosity a layer is a bare name, whose type and precision stay unknown.
    """
    data = json.loads(text)
    entries = data.get("Layers") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it has no list of layers")
    return tuple(_inspected_layer(entry) for entry in entries), data


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    r"""Names of the graph's nodes in a layer's metadata; of a function, the node that calls it.

    >>> onnx_nodes("[ONNX Layer: a]\x1e[ONNX Layer: rows | x/Pool_0 (PoolGatherConcat)]")
    ('a', 'x/Pool_0')
    """
    stacks = (found.split(" | ") for found in _ONNX_LAYER.findall(metadata))
    return tuple(dict.fromkeys(stack[-1].split(" (")[0] for stack in stacks))


def _network_layer(layer: Any) -> Layer:
    types = (layer.get_output(i).dtype.name for i in range(layer.num_outputs))
    # A constant's type says nothing of how the model computes.
    counted = () if layer.type.name == "CONSTANT" else _known(types)
    nodes = onnx_nodes(getattr(layer, "metadata", "") or "")
    return Layer(layer.name, layer.type.name, nodes, counted)


def _inspected_layer(entry: Any) -> Layer:
    if not isinstance(entry, dict):
        return Layer(str(entry), "unknown")
    outputs = entry.get("Outputs") or []
    formats = " ".join(str(o.get("Format/Datatype", "")) for o in outputs if isinstance(o, dict))
    return Layer(
        str(entry.get("Name", "")),
        str(entry.get("LayerType", "unknown")),
        onnx_nodes(str(entry.get("Metadata", ""))),
        _known(re.findall(r"\w+", formats)),
    )


def _known(types: Iterable[str]) -> tuple[str, ...]:
    named = (_PRECISIONS.get(name.upper()) for name in types)
    return tuple(dict.fromkeys(name for name in named if name))

"""A model's identity, and that of what it caches, as bundles and stored caches carry them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ckv_export.contract import ModelSpec


def fingerprint(spec: ModelSpec, state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the configuration and every tensor's name, shape and bytes."""
    return _digest(spec.to_dict(), state)


def fingerprint_but_pools(spec: ModelSpec, state: Mapping[str, Tensor]) -> str:
    """The same without the pools: two models that have it in common can swap theirs."""
    return _digest(spec.to_dict(), {n: t for n, t in state.items() if not n.endswith(".pool")})


def lookup_fingerprint(looked_up: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the item features that a form with an item key holds; "" for none."""
    return _digest({}, looked_up) if looked_up else ""


def entries_fingerprint(spec: ModelSpec, state: Mapping[str, Tensor], looked_up: str = "") -> str:
    """SHA-256 (hex) over all that an event's cache entries depend on.

    Models that have it in common can read each other's caches. `looked_up`: `lookup_fingerprint`
    of the item features that the graphs hold.
    """
    told = spec.to_dict()
    described = {name: told[name] for name in ("attention", "num_layers")}
    described["features"] = [f for f in told["features"] if f["role"] == "item"]
    described["looked_up"] = looked_up
    return _digest(described, {n: t for n, t in state.items() if determines_entries(spec, n)})


def determines_entries(spec: ModelSpec, name: str) -> bool:
    """Whether the tensor `name` of a state dict has a part in what is cached of an event."""
    if name.startswith("embedding."):
        tables = {f.shares or f.name for f in spec.embedded_item_features}
        return name.removeprefix("embedding.").rpartition(".")[0] in tables
    if not name.startswith("attention."):
        return name == "input.weight"
    _, layer, part = name.split(".", 2)
    encodes = part[:2] in ("k.", "v.") and not part.endswith(".pool")
    if not spec.layers_see_history:
        return encodes
    return int(layer) < spec.num_layers - 1 or encodes or part.startswith("norm.")


def _digest(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.numpy().reshape(-1).view(np.uint8).data)
    return digest.hexdigest()

"""A model's identity, and that of what it caches, as bundles and stored caches carry them.

Each is the SHA-256 of one line of JSON: what is described, and the digest of each tensor by name. A
tensor's digest is the SHA-256 of its shape and dtype as JSON and of its values in row-major order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ckv_export.contract import ModelSpec

COPIED = 2**24
"""Bytes that are copied at a time of a tensor whose values don't lie in row-major order."""


@dataclass(frozen=True)
class Fingerprints:
    """A model's identities, each a SHA-256 in hex, of one reading of its tensors.

    `model`: over the configuration and every tensor. `but_pools`: the same without the pools; two
    models that have it in common can swap theirs. `entries`: over all that an event's cache entries
    depend on; models that have it in common can read each other's caches. `looked_up`: over the
    item features that the graphs hold, a part of `entries`; "" for none.
    """

    model: str
    but_pools: str
    entries: str
    looked_up: str

    @classmethod
    def of(cls, spec: ModelSpec, state: Mapping[str, Tensor], looked_up: str = "") -> Fingerprints:
        """Read each tensor of `state` once; they are dense and real, on the CPU, of any shape.

        `looked_up`: a `lookup_fingerprint`. Nothing is copied but, `COPIED` bytes at a time, a
        tensor whose values don't lie in row-major order.
        """
        digests = {name: _tensor_digest(tensor) for name, tensor in state.items()}
        swappable = {n: d for n, d in digests.items() if not n.endswith(".pool")}
        encoding = {n: d for n, d in digests.items() if determines_entries(spec, n)}
        told = spec.to_dict()
        return cls(
            _digest(told, digests),
            _digest(told, swappable),
            _digest(_entries_description(told, looked_up), encoding),
            looked_up,
        )


def fingerprint(spec: ModelSpec, state: Mapping[str, Tensor]) -> str:
    """`Fingerprints.model`, where it alone is wanted."""
    return Fingerprints.of(spec, state).model


def lookup_fingerprint(looked_up: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the item features that a form with an item key holds; "" for none."""
    return _digest({}, {n: _tensor_digest(t) for n, t in looked_up.items()}) if looked_up else ""


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


def _entries_description(told: Mapping[str, Any], looked_up: str) -> dict[str, Any]:
    """What of a configuration, as plain data, has a part in what is cached of an event."""
    described = {name: told[name] for name in ("attention", "num_layers")}
    described["features"] = [f for f in told["features"] if f["role"] == "item"]
    described["looked_up"] = looked_up
    return described


def _digest(described: Mapping[str, Any], tensors: Mapping[str, str]) -> str:
    text = json.dumps({"described": described, "tensors": tensors}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    about = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for part in _in_order(tensor.detach()):
        # A tensor of one value may have any stride, and numpy has no bfloat16: bytes first.
        flat = part.as_strided((part.numel(),), (1,))
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _in_order(tensor: Tensor) -> Iterator[Tensor]:
    """The values in row-major order: the tensor itself if they lie so, else copies of pieces."""
    if tensor.is_contiguous():
        yield tensor
    elif tensor.nbytes <= COPIED:
        yield tensor.contiguous()
    elif tensor[0].nbytes > COPIED:
        for row in tensor:
            yield from _in_order(row)
    else:
        for rows in tensor.split(COPIED // tensor[0].nbytes):
            yield rows.contiguous()

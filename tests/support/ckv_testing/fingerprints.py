"""A model's fingerprints number by number, from the description of those in the package."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

from torch import Tensor

from ckv_export.contract import ModelSpec
from ckv_export.model.fingerprint import Fingerprints, determines_entries

PACKED = {"float32": "f", "float64": "d", "float16": "e", "int64": "q", "int32": "i", "bool": "?"}
State = dict[str, Tensor]


def packed(tensor: Tensor) -> bytes:
    """Every value on its own, little-endian."""
    kind = str(tensor.dtype).removeprefix("torch.")
    values = tensor.flatten().tolist()
    if kind == "bfloat16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return b"".join(struct.pack(f"<{PACKED[kind]}", value) for value in values)


def hashed(described: Any, state: State) -> str:
    digests = {}
    for name, tensor in state.items():
        about = {"dtype": str(tensor.dtype)[6:], "shape": list(tensor.shape)}
        digests[name] = hashlib.sha256(json.dumps(about).encode() + packed(tensor)).hexdigest()
    text = json.dumps({"described": described, "tensors": digests}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def slow_fingerprints(spec: ModelSpec, state: State, looked_up: str) -> Fingerprints:
    told = spec.to_dict()
    items = [f for f in told["features"] if f["role"] == "item"]
    encoding = {
        "attention": told["attention"],
        "num_layers": told["num_layers"],
        "features": items,
        "looked_up": looked_up,
    }
    return Fingerprints(
        hashed(told, state),
        hashed(told, {n: t for n, t in state.items() if not n.endswith(".pool")}),
        hashed(encoding, {n: t for n, t in state.items() if determines_entries(spec, n)}),
        looked_up,
    )

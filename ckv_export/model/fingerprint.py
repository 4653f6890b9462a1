"""A model's identity, as bundles and stored caches carry it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ckv_export.contract import ModelSpec


def fingerprint(spec: ModelSpec, state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the configuration and every tensor's name, shape and bytes."""
    digest = hashlib.sha256(json.dumps(spec.to_dict(), sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].detach().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.numpy().reshape(-1).view(np.uint8).data)
    return digest.hexdigest()

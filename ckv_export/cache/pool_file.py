"""The pools of a bundle whose graphs take them as inputs, in a file of their own.

``pools.safetensors``: ``pool_<k|v>_<layer>`` [M, d - d_u] each, as the graphs take them, silu
applied; its metadata names the model they are of and the caches that go with them. A server binds
them once, for all contexts and engines; another file of the same shapes goes live by binding that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ckv_export.cache.tensor_file import save_tensors
from ckv_export.engine.files import beside
from ckv_export.errors import BundleError, reason
from ckv_export.manifest import POOLS_FILE, Manifest

Pools = dict[str, NDArray[np.generic]]


def save_pools(
    path: Path, pools: Mapping[str, NDArray[np.generic]], fingerprint: str, entries: str
) -> None:
    """Write pools by input name, whole or not at all.

    `fingerprint`: of the model they are of; `entries`: of the caches that go with them. Raises
    `BundleError` where they can't be written.
    """
    about = {"fingerprint": fingerprint, "entries": entries}
    try:
        with beside(path) as temporary:
            save_tensors(temporary, pools, about)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"can't write the pools {path}: {reason(error)}") from error


def load_pools(folder: Path, manifest: Manifest) -> Pools:
    """The pools that lie in a bundle, none if its graphs hold them; raises `BundleError`."""
    if manifest.form.pools is None:
        return {}
    path = folder / POOLS_FILE
    try:
        with safe_open(path, framework="numpy") as file:
            pools = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} holds no pools: {reason(error)}") from error
    wanted = manifest.form.pool_tensors(manifest.model, manifest.model.num_layers)
    shapes = {t.name: (t.dtype, t.axes) for t in wanted}
    found = {name: (str(pool.dtype), pool.shape) for name, pool in pools.items()}
    if found != shapes:
        raise BundleError(f"{path} must hold {shapes}, got {found}")
    return pools

"""A retrained pool for a bundle whose graphs take pools as inputs, without a rebuild."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckv_export.cache.pool_file import Pools, save_pools
from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.errors import BundleError
from ckv_export.manifest import POOLS_FILE, is_bundle, open_bundle
from ckv_export.model.base import CollectiveModel
from ckv_export.model.fingerprint import Fingerprints
from ckv_export.model.registry import build_model


@dataclass(frozen=True)
class NewPools:
    """A file of pools, the model they are of, and whether caches made before are still valid."""

    path: Path
    fingerprint: str
    caches_valid: bool


def pool_arrays(model: CollectiveModel) -> Pools:
    """The pools of a split model under the names of the graphs' inputs, in its precision."""
    return {f"pool_{side}_{layer}": p.numpy() for (layer, side), p in model.pools().items()}


def write_pools(
    bundle: Path, model: Path, out: Path, weights: str | None = None, params: str | None = None
) -> NewPools:
    """Write the pools of the checkpoint `model` as the graphs of `bundle` take them.

    `out`: a .safetensors file, or a folder for ``pools.safetensors``, outside of any bundle.
    Raises `BundleError` unless the bundle takes pools and the checkpoint, which is never written
    to, differs from the one that was exported in its pools alone.
    """
    path = out / POOLS_FILE if out.is_dir() else out
    if path.suffix != ".safetensors":
        raise BundleError(
            f"pools are written to a .safetensors file or a folder that exists, got {out}"
        )
    if is_bundle(path.parent):
        raise BundleError(
            f"{path.parent} is a bundle, whose files are those that were exported: choose another "
            "--out"
        )
    manifest = open_bundle(bundle)
    if manifest.form.pools is None:
        raise BundleError(
            f"the graphs of {bundle} hold their pools: export with --pool input to exchange them"
        )
    checkpoint = load_checkpoint(model, weights=weights, params=params)
    if path.resolve() in [file.resolve() for file in checkpoint.files]:
        raise BundleError(f"{path} is the checkpoint: choose another --out")
    spec, state, known = checkpoint.spec, checkpoint.state, manifest.fingerprints
    prints = Fingerprints.of(spec, state, known["looked up"])
    if prints.but_pools != known["all but pools"]:
        raise BundleError(
            f"{model} differs from the model of {bundle} in more than its pools: export it"
        )
    split = build_model(spec, state, precision=manifest.precision)
    save_pools(path, pool_arrays(split), prints.model, prints.entries)
    return NewPools(path, prints.model, prints.entries == known["entries"])

"""A Triton model repository appears whole or not at all, as bundles do."""

from __future__ import annotations

from pathlib import Path

from ckv_export.deploy.publish import require_outside, staged
from ckv_export.errors import BundleError
from ckv_export.manifest import Manifest
from ckv_export.store.urls import store_file
from ckv_export.triton.repository import LAUNCHER, RepositoryOptions, write_repository


def publish_repository(
    bundle: Path, manifest: Manifest, options: RepositoryOptions, out: Path, force: bool
) -> list[str]:
    """Write the repository `out`; returns its models' names.

    `force`: replace an earlier one of ours. Raises `BundleError` where `out` must not be written,
    and what `write_repository` raises.
    """
    require_outside(bundle, out)
    require_outside(out, bundle, options.plugin, store_file(options.store))
    with staged(out) as folder:
        names = write_repository(bundle, manifest, options, folder)
        check_place(out, force)
    return names


def check_place(out: Path, force: bool) -> None:
    """Raise `BundleError` unless a repository may be written to `out`."""
    if not out.exists():
        return
    if not out.is_dir():
        raise BundleError(f"the output folder {out} is a file")
    ours = (out / LAUNCHER).is_file()
    if any(out.iterdir()) and not ours:
        raise BundleError(
            f"{out} exists and is no repository that ckv-export wrote, so it is never replaced: "
            "choose another --out"
        )
    if ours and not force:
        raise BundleError(f"the repository {out} exists: give --force to replace it")

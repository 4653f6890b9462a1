"""A bundle appears whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckv_export.errors import BundleError
from ckv_export.manifest import FILE_NAME


def check_target(out: Path, name: str, force: bool) -> Path:
    """The bundle's folder `out`/`name`; raises `BundleError` where it must not be written."""
    if not name or name != Path(name).name or name.startswith("."):
        raise BundleError(
            f"a bundle's name must be a plain folder name that starts with no dot, got {name!r}"
        )
    target = out / name
    if out.exists() and not out.is_dir():
        raise BundleError(f"the output folder {out} is a file")
    if target.exists() and not (target / FILE_NAME).is_file():
        raise BundleError(
            f"{target} exists and is no bundle, so it is never replaced: choose another --name"
        )
    if target.exists() and not force:
        raise BundleError(
            f"the bundle {target} exists: give --force to replace it, or another --name"
        )
    return target


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes `target` when the body succeeds.

    When it raises, whatever the exception, everything is as it was before, folders that had to
    be made for it included.
    """
    made = [p for p in (target.parent, *target.parent.parents) if not p.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        staging.chmod(0o755)
        yield staging
        _move(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


def _move(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        target.rename(old / target.name)
        try:
            staging.rename(target)
        except BaseException:
            (old / target.name).rename(target)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)

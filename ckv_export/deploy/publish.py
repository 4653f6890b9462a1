"""A bundle appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckv_export.deploy.exchange import exchange
from ckv_export.errors import BundleError
from ckv_export.manifest import is_bundle


def check_target(out: Path, name: str, force: bool) -> Path:
    """The bundle's folder `out`/`name`; raises `BundleError` where it must not be written."""
    if not name or name != Path(name).name or name.startswith("."):
        raise BundleError(
            f"a bundle's name must be a plain folder name that starts with no dot, got {name!r}"
        )
    target = out / name
    try:
        str(target.absolute()).encode()
    except UnicodeEncodeError as error:
        raise BundleError(
            f"a bundle's path must be UTF-8 text, which ONNX asks of the files it checks, got "
            f"{str(target.absolute())!r}: choose another --out or --name"
        ) from error
    if out.exists() and not out.is_dir():
        raise BundleError(f"the output folder {out} is a file")
    if is_bundle(out):
        raise BundleError(
            f"the output folder {out} is a bundle: give the folder that it lies in, and to replace "
            f"it --name {out.name} --force"
        )
    if target.exists() and not is_bundle(target):
        raise BundleError(
            f"{target} exists and is no bundle, so it is never replaced: choose another --name"
        )
    if target.exists() and not force:
        raise BundleError(
            f"the bundle {target} exists: give --force to replace it, or another --name"
        )
    return target


def require_outside(target: Path, *given: Path | None) -> None:
    """Raise `BundleError` for what was given and lies in `target`, which is replaced as a whole."""
    folder = target.resolve()
    for path in filter(None, given):
        if path.resolve().is_relative_to(folder):
            raise BundleError(
                f"{path} lies in {target}, which is replaced with everything in it: move it to "
                "another place, or choose another output"
            )


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes `target` when the body succeeds.

    When it raises, whatever the exception, everything is as it was before, folders that had to
    be made for it included. Who looks at `target` meanwhile sees the old bundle or the new one.
    A symbolic link stays, and what it points to is replaced. A process that works in the old one
    works in the new one afterwards.
    """
    target = target.resolve()
    made = [p for p in (target.parent, *target.parent.parents) if not p.exists()]
    staging = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        staging.chmod(0o755)
        yield staging
        with _undisturbed():
            _move(staging, target)
    except BaseException:
        with _undisturbed():
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        raise


@contextmanager
def amended(bundle: Path) -> Iterator[Path]:
    """A copy of `bundle` that replaces it when the body succeeds, by the rules of `staged`.

    Files are hard links where the file system has them: replace them, don't write into them.
    """
    with staged(bundle) as folder:
        shutil.copytree(
            bundle, folder, symlinks=True, copy_function=_link_or_copy, dirs_exist_ok=True
        )
        yield folder


def _link_or_copy(source: str, copy: str) -> None:
    try:
        os.link(source, copy, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, copy)


def _move(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    exchange(staging, target)
    _follow(staging, target)
    shutil.rmtree(staging, ignore_errors=True)


def _follow(old: Path, new: Path) -> None:
    """Where this process works in `old`, enter `new`, for the relative paths that it still uses."""
    with contextlib.suppress(OSError):
        here = Path.cwd()
        if here.is_relative_to(old):
            os.chdir(new / here.relative_to(old))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM in the block: stopped halfway it would lose or leave files."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not None]
    # No SIG_IGN: Python complains on stderr of a signal that came just before such a change.
    previous = {n: signal.signal(n, lambda number, frame: None) for n in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Two folders change places."""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def exchange(one: Path, other: Path) -> None:
    """Swap two existing paths of one folder; raises OSError with both where they were.

    On Linux in one step, so that each name always exists; elsewhere, and on file systems that
    can't, in three renames.
    """
    if not _in_one_step(one, other):
        _in_three_steps(one, other)


def _in_one_step(one: Path, other: Path) -> bool:
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    paths = (os.fsencode(one), os.fsencode(other))
    return bool(renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0)


def _in_three_steps(one: Path, other: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix=f".{other.name}.", dir=other.parent))
    aside = folder / other.name
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in ((other, aside), (one, other), (aside, one)):
            source.rename(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise
    finally:
        # Not rmtree: should a rename have failed, what it holds is the user's.
        folder.rmdir()

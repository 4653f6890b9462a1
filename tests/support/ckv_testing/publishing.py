"""Folders like bundles, to be published, and a signal that ends the publishing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ckv_export.manifest import FILE_NAME

either_exchange = pytest.mark.usefixtures("_either_exchange")
"""By one call of the system, and as where it knows none: `tests/deploy/conftest.py`."""


class Stop(BaseException):
    """No Exception, as KeyboardInterrupt is none; but pytest goes on to the next test after it."""


def stop(number: int, frame: object) -> None:
    raise Stop


HANDLERS = {signal.SIGINT: stop, signal.SIGTERM: signal.SIG_DFL}


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        p.relative_to(folder).as_posix(): (
            p.lstat().st_mode,
            os.fsencode(p.readlink())
            if p.is_symlink()
            else (p.read_bytes() if p.is_file() else b""),
        )
        for p in folder.rglob("*")
    }


def fill(folder: Path, content: str) -> None:
    """A bundle of two files that belong together."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_text(content)
    (folder / "graph").write_text(content)

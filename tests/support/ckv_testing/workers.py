"""What the workers of one run of pytest make between them: each export by whoever comes first."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path


def common_folder(base: Path) -> Path:
    """Of all workers of the run; `base`: pytest's base folder of this one."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    # A pytest that a worker's test starts is no worker, but has its environment.
    return base.parent if base.name == f"popen-{worker}" else base


def common_seed() -> int:
    """Another in every run, the same in all its workers; CKV_EXPORT_SEED gives it."""
    given = os.environ.get("CKV_EXPORT_SEED")
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or secrets.token_hex(8)
    return int(given) if given else zlib.crc32(run.encode())


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """`folder`, filled by `make` unless a worker has done so; not to be changed by any.

    Others wait meanwhile. Where `make` fails or its worker dies, the next begins anew.
    """
    with Path(f"{folder}.made").open("a+") as note:
        fcntl.flock(note, fcntl.LOCK_EX)
        note.seek(0)
        if not note.read():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            note.write("made")
    return folder

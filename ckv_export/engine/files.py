"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ckv_export.errors import EngineError, reason


@contextlib.contextmanager
def beside(out: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `out`; rename it at the end, or remove it.

    Raises `OSError` where `out` is a device, a pipe or a folder, which no file may replace.
    """
    if out.exists() and not out.is_file():
        raise FileExistsError(errno.EEXIST, "it is no plain file", str(out))
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def write_plan(plan: Any, out: Path) -> int:
    """Write the library's host memory `plan` to `out`; its size in bytes. Raises `EngineError`."""
    view = memoryview(plan)
    try:
        with beside(out) as temporary, temporary.open("wb") as file:
            file.write(view)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise EngineError(f"can't write the engine {out}: {reason(error)}") from error
    return view.nbytes

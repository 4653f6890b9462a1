"""Files that engines are made of and kept with: read, and written whole or not at all."""

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
    require_plain(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def is_there(path: Path) -> bool:
    """As `Path.exists`, but a name that can't be one is an `OSError` in every Python."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def require_plain(out: Path) -> None:
    """Raise `OSError` where `out` is a device, a pipe or a folder, which no file may replace."""
    if is_there(out) and not out.is_file():
        raise FileExistsError(errno.EEXIST, "it is no plain file", str(out))


def write_whole(data: Any, out: Path) -> int:
    """Write a library's host memory `data` to `out`; its size in bytes. Raises `OSError`.

    It is on the disk before it takes its name.
    """
    view = memoryview(data)
    with beside(out) as temporary, temporary.open("wb") as file:
        file.write(view)
        file.flush()
        os.fsync(file.fileno())
    return view.nbytes


def write_plan(plan: Any, out: Path) -> int:
    """Write `plan` to `out`; its size in bytes. Raises `EngineError`."""
    try:
        return write_whole(plan, out)
    except OSError as error:
        raise EngineError(f"can't write the engine {out}: {reason(error)}") from error


def read_onnx(path: Path) -> Any:
    """The graph in `path` without weights in other files; raises `EngineError`."""
    # Imported late: whoever loads engines needs no onnx.
    import onnx

    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own classes
        raise EngineError(f"{path} can't be read as ONNX: {reason(error)}") from error

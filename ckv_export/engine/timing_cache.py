"""Kernel timings of earlier builds: a file that TensorRT reads before a build and adds to.

With it, a second build of the same layers measures nothing. Timings hold for one version of
TensorRT and one GPU; TensorRT itself tells, and a file of another is refused, never overwritten.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ckv_export.engine.backends import Backend
from ckv_export.engine.files import require_plain, write_whole
from ckv_export.errors import EngineError, reason


def require_place(path: Path) -> None:
    """Raise `EngineError` where no timings could be kept in `path`: known before they are taken."""
    if not path.parent.is_dir():
        raise EngineError(f"there is no folder {path.parent} for the timing cache {path.name}")
    try:
        require_plain(path)  # who opens a pipe waits for its other end
    except OSError as error:
        raise EngineError(f"can't write the timing cache {path}: {reason(error)}") from error
    if not os.access(path.parent, os.W_OK):
        raise EngineError(f"can't write the timing cache {path}: its folder is read-only")


def attach(path: Path, config: Any, backend: Backend) -> None:
    """Give `config` the timings in `path`, none where there is no such file.

    Raises `EngineError` for a file that is no timing cache of this TensorRT and GPU.
    """
    cache = _create(config, _read(path))
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise EngineError(
            f"{path} is no timing cache that {backend.label} can use on this GPU: it is damaged, "
            "or from another version or GPU; name another file, or delete this one"
        )


def update(path: Path, config: Any) -> None:
    """Write what `config` has by now to `path`, with what another build put there meanwhile.

    The file is the old or the new one, never half of one. Raises `EngineError` where it can't be
    written.
    """
    cache = config.get_timing_cache()
    present = _create(config, _read(path))
    if present is not None:
        # What differs in version or GPU is left out, and then lost: such a file was refused above.
        cache.combine(present, ignore_mismatch=False)
    try:
        write_whole(cache.serialize(), path)
    except OSError as error:
        raise EngineError(f"can't write the timing cache {path}: {reason(error)}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise EngineError(f"can't read the timing cache {path}: {reason(error)}") from error


def _create(config: Any, data: bytes) -> Any:
    try:
        return config.create_timing_cache(data)
    except (RuntimeError, ValueError, TypeError):
        # Bindings raise where the library returns no cache.
        return None

"""Memory of the process as a server would have it."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_TRIM_BYTES, _MMAP_BYTES = 1 << 28, 1 << 25


def keep_freed_memory() -> bool:
    """Let glibc keep what was freed, as ``launch.sh`` of a Triton repository does.

    Otherwise arrays from 128 KiB on may go back to the system when they are freed, and every page
    of the next ones is a fault: the arrays of 64 users then take many times as long to make.
    False where the C library has no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_TRIM_THRESHOLD, _TRIM_BYTES))

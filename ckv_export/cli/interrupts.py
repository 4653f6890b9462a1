"""Ctrl-C and SIGTERM raise KeyboardInterrupt, and are remembered.

What runs meanwhile may drop the exception or make its own of it, as PyTorch's exporter does: `seen`
tells an interrupt from an error, and `check` raises it again.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_seen: list[int] = []


@contextlib.contextmanager
def handled(until_exit: bool) -> Iterator[None]:
    """Handle both signals in the block; afterwards ignore them, or put back what was before.

    `until_exit`: the process has nothing left to do afterwards that an interrupt could stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _seen.clear()
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    # What is ignored (nohup, a job in the background) stays so; None is a handler of C code.
    ours = [n for n, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in ours:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in ours:
            # By way of a handler: Python complains of a signal that comes just before SIG_IGN. And
            # not left at a handler: as it ends, Python resets those, and a signal would kill it.
            signal.signal(number, _ignore)
            signal.signal(number, signal.SIG_IGN if until_exit else before[number])


def seen() -> bool:
    """Whether one came since the block of `handled` began."""
    return bool(_seen)


def check() -> None:
    """Raise KeyboardInterrupt where one came and nobody stopped for it."""
    if _seen:
        raise KeyboardInterrupt


def _raise(number: int, frame: FrameType | None) -> None:
    _seen.append(number)
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing."""

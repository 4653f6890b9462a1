"""How a build tells where it is, and how it is stopped.

The library reports nested phases, each with a number of steps, through an
``IProgressMonitor``. `monitor` turns that into calls of a `ProgressListener`.
An exception can't cross the library: its bindings print and drop it. So a listener's
exception and a signal are kept, the build is told to stop at its next step, and both
come out of `monitor` and `deferred_signals` afterwards.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from ckv_export.engine.backends import Backend
from ckv_export.errors import EngineError


class ProgressListener(Protocol):
    """Hears of the phases of a build. May be called from the library's threads."""

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """Phase `name` begins inside `parent` (None: the outermost) and has `steps` steps."""

    def step(self, name: str, index: int) -> None:
        """Step `index`, counted from 0, of phase `name` is done."""

    def finish(self, name: str) -> None:
        """Phase `name` ended; after a cancelled build, with fewer steps than announced."""


@dataclass
class Cancellation:
    """Whether a build should stop, and why: a signal's number or a listener's exception."""

    signals: list[int] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    @property
    def wanted(self) -> bool:
        """Whether anything asks the build to stop."""
        return bool(self.signals or self.failures)


@contextlib.contextmanager
def deferred_signals(cancellation: Cancellation) -> Iterator[None]:
    """Note SIGINT and SIGTERM in `cancellation` while the block runs, deliver them after it.

    The caller's own handlers get them then: KeyboardInterrupt for Ctrl-C by default. Should
    such a handler return, `EngineError` is raised, so that no cancelled build looks like a
    finished one. Outside the main thread, where Python has no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: _replace(number, cancellation) for number in _deferrable()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for number in cancellation.signals:
            signal.raise_signal(number)
    if cancellation.signals:
        names = ", ".join(signal.Signals(number).name for number in cancellation.signals)
        raise EngineError(f"the engine build was stopped by {names}; no engine was written")


def monitor(backend: Backend, listener: ProgressListener, cancellation: Cancellation) -> Any:
    """Make an ``IProgressMonitor`` that forwards to `listener` and stops when cancelled.

    Keep it alive until the build has returned: the library holds no reference.
    """

    class Monitor(backend.module.IProgressMonitor):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            backend.module.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with _kept(cancellation):
                listener.phase_start(name, parent, steps)

        def step_complete(self, name: str, index: int) -> bool:
            with _kept(cancellation):
                listener.step(name, index)
            return not cancellation.wanted

        def phase_finish(self, name: str) -> None:
            with _kept(cancellation):
                listener.finish(name)

    return Monitor()


class Silent:
    """A listener that shows nothing; a build without one could not be cancelled."""

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """Show nothing."""

    def step(self, name: str, index: int) -> None:
        """Show nothing."""

    def finish(self, name: str) -> None:
        """Show nothing."""


@contextlib.contextmanager
def _kept(cancellation: Cancellation) -> Iterator[None]:
    try:
        yield
    except BaseException as failure:  # raised again once the build returned
        cancellation.failures.append(failure)


def _deferrable() -> list[int]:
    # A handler that C code installed reads as None and could not be put back; an ignored
    # signal stays ignored.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    return [n for n, handler in handlers.items() if handler not in (None, signal.SIG_IGN)]


def _replace(number: int, cancellation: Cancellation) -> Any:
    def note(signum: int, frame: FrameType | None) -> None:
        cancellation.signals.append(signum)

    return signal.signal(number, note)

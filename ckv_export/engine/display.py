"""The progress of a build on a terminal: bars, or plain lines where there are none to draw."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ckv_export.engine.progress import ProgressListener


@contextlib.contextmanager
def progress_display(console: Console | None = None) -> Iterator[ProgressListener]:
    """Yield a listener that draws bars on a terminal and prints lines elsewhere.

    `console` defaults to standard error, so that standard output stays for results.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bars(progress)


class Bars:
    """One bar per phase that is running, indented below its parent."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._depth: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """Add the phase's bar."""
        depth = self._depth.get(parent, -1) + 1 if parent else 0
        self._depth[name] = depth
        self._tasks[name] = self._progress.add_task("  " * depth + name, total=steps)

    def step(self, name: str, index: int) -> None:
        """Move the phase's bar."""
        if name in self._tasks:
            self._progress.update(self._tasks[name], completed=index + 1)

    def finish(self, name: str) -> None:
        """Take the phase's bar away."""
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))


class Lines:
    """One line for each of the outer phases when it ends: a build log stays readable."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._depth: dict[str, int] = {}
        self._started: dict[str, float] = {}

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """Note when the phase began."""
        self._depth[name] = self._depth.get(parent, -1) + 1 if parent else 0
        self._started[name] = time.perf_counter()

    def step(self, name: str, index: int) -> None:
        """Print nothing: steps are too many."""

    def finish(self, name: str) -> None:
        """Print an outer phase and the seconds it took."""
        seconds = time.perf_counter() - self._started.pop(name, time.perf_counter())
        if self._depth.get(name, 0) <= 1:
            self._console.print(f"{name}: {seconds:.1f} s", markup=False, highlight=False)

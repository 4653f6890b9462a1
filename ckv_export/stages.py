"""The stages of a long command: what runs, how long it took, what came of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Stage:
    """One finished or running stage: wall-clock seconds and a remark on its outcome."""

    title: str
    seconds: float = 0.0
    remark: str = ""


class Stages:
    """Times stages. A command line subclasses it to show them as they run."""

    def __init__(self) -> None:
        self.finished: list[Stage] = []

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """Time the body; it may set the stage's `remark`."""
        stage = Stage(title)
        self.started(stage)
        start = time.perf_counter()
        try:
            yield stage
        except BaseException:
            stage.seconds = time.perf_counter() - start
            self.failed(stage)
            raise
        stage.seconds = time.perf_counter() - start
        self.finished.append(stage)
        self.ended(stage)

    def timings(self) -> dict[str, float]:
        """Seconds of each finished stage by title."""
        return {stage.title: round(stage.seconds, 3) for stage in self.finished}

    def started(self, stage: Stage) -> None:
        """Called before a stage runs."""

    def ended(self, stage: Stage) -> None:
        """Called after a stage has succeeded."""

    def failed(self, stage: Stage) -> None:
        """Called after a stage has raised."""

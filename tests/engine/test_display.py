"""The progress of a build as bars, and as lines where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from ckv_export.engine import progress_display
from ckv_export.engine.display import Bars


def test_a_bar_for_each_phase_that_runs():
    console = Console(file=io.StringIO(), force_terminal=True)
    progress = Progress(console=console, auto_refresh=False)
    bars = Bars(progress)

    def shown() -> list[tuple[str, float, float | None]]:
        return [(task.description, task.completed, task.total) for task in progress.tasks]

    bars.phase_start("build", None, 2)
    bars.phase_start("fuse", "build", 3)
    bars.phase_start("time", "fuse", 4)
    assert shown() == [("build", 0, 2), ("  fuse", 0, 3), ("    time", 0, 4)]
    bars.step("fuse", 0)
    bars.finish("time")
    bars.step("time", 1)
    bars.finish("time")
    assert shown() == [("build", 0, 2), ("  fuse", 1, 3)]


def test_lines_of_the_outer_phases_on_standard_error(capsys: pytest.CaptureFixture[str]):
    with progress_display() as lines:
        for name, parent in (("[b]build", None), ("fuse", "[b]build"), ("time", "fuse")):
            lines.phase_start(name, parent, 1)
        for name in ("time", "fuse", "[b]build"):
            lines.finish(name)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["fuse: 0.0 s", "[b]build: 0.0 s"]

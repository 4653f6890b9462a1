"""What verbs print in common: running stages, tables, commands."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.status import Status
from rich.table import Table
from rich.text import Text

from ckv_export.cli import interrupts
from ckv_export.errors import Interrupted
from ckv_export.parity.report import ParityReport
from ckv_export.parity.tables import localized_sentence, runtime_tables, tensor_table
from ckv_export.stages import Stage, Stages


class SteadyConsole(Console):
    """Falls silent when its reader is gone (``| head``), and lets the work go on."""

    def on_broken_pipe(self) -> None:
        """Say nothing more."""
        self.quiet = True
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


# Files and pipes have no width; rich would take 80 columns and break most tables.
_FILE_WIDTH = 120

# Names and paths may look like rich's markup, and ":100:" of a range is an emoji of it.
console = SteadyConsole(
    highlight=False,
    soft_wrap=False,
    markup=False,
    emoji=False,
    width=None if sys.stdout and sys.stdout.isatty() else _FILE_WIDTH,
)


class ShownStages(Stages):
    """Stages that show themselves: a spinner on a terminal, a line each when they end."""

    def __init__(self) -> None:
        super().__init__()
        self._status: Status | None = None

    def started(self, stage: Stage) -> None:
        """Show that the stage runs."""
        if console.is_terminal:
            self._status = console.status(Text(stage.title))
            self._status.start()

    def ended(self, stage: Stage) -> None:
        """Print the stage's line."""
        self._line(stage, "done", "green")
        interrupts.check()

    def failed(self, stage: Stage) -> None:
        """Print the stage's line, marked."""
        self._line(stage, "FAILED", "red")

    def pause(self) -> None:
        """Stop the spinner, for something else that draws."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _line(self, stage: Stage, verdict: str, style: str) -> None:
        self.pause()
        parts = f"{stage.title:<24} ", (verdict, style), f" {stage.seconds:6.1f} s  "
        console.print(Text.assemble(*parts), end="")
        console.print(stage.remark)


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A plain table of text."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for head in heads:
        made.add_column(head, overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def parity_tables(report: ParityReport, brief: bool = False) -> list[RenderableType]:
    """The tables of each runtime (brief: that of its tensors), and who couldn't run."""
    shown: list[RenderableType] = []
    for outcome in report.outcomes:
        shown.append(Text(f"\nParity of {outcome.label} with {report.truth}", style="bold"))
        tables = [tensor_table(outcome)] if brief else runtime_tables(report, outcome)
        shown += [table(t.title, t.heads, t.rows) for t in tables]
        if outcome.unproven:
            shown.append(Text(f"Not proven: {outcome.unproven}", style="bold yellow"))
        sentence = localized_sentence(report, outcome)
        if sentence:
            shown.append(Text(f"Inside the graph: {sentence}"))
    if report.not_run:
        rows = list(report.not_run.items())
        shown.append(table("Not run", ("runtime", "why"), rows))
    return shown


@contextlib.contextmanager
def done(what: str) -> Iterator[None]:
    """Around what is printed after the work: an interrupt there must not deny that it was done."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted, but {what}") from None


def command(*words: str | Path) -> str:
    """A command line to copy."""
    return shlex.join(["ckv-export", *(str(w) for w in words)])


def print_lines(lines: Sequence[str]) -> None:
    """Print lines unwrapped, so that commands can be copied."""
    for line in lines:
        console.print(line, soft_wrap=True)

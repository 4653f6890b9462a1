"""``ckv-export demo``: the whole job on a model trained here and now."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ckv_export import engine
from ckv_export.cli import export, inspect, options
from ckv_export.cli.show import command, console, print_lines
from ckv_export.deploy.bundle import ExportRequest
from ckv_export.deploy.engines import EngineOptions
from ckv_export.training.demo import EVENTS, OPTIONS, train_demo
from ckv_export.training.loop import Progress as TrainingProgress
from ckv_export.training.loop import TrainingReport

HELP = "train a small real model on generated clicks, then run the whole job on it"

_TRAINED = "demo-checkpoints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    parser.add_argument(
        "--out", default=Path("engines"), metavar="DIR", type=Path, help="where bundles go"
    )
    parser.add_argument(
        "--kind",
        action="append",
        choices=tuple(OPTIONS),
        help="which model to train; repeat for several; default: sim and hstu",
    )
    parser.add_argument("--seed", type=options.count, default=0, help="of data, model and parity")


def run(args: argparse.Namespace) -> int:
    """For each kind: train, export, prove parity, build engines where possible, inspect."""
    for kind in args.kind or ("sim", "hstu"):
        console.rule(Text(kind, style="bold"))
        _run_one(kind, args.out, args.seed)
    return 0


def _run_one(kind: str, out: Path, seed: int) -> None:
    checkpoint = out / _TRAINED / kind / f"demo-{kind}.pt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    _train(kind, checkpoint, seed)
    # The demo's own bundle may be replaced: running it twice is no mistake.
    request = ExportRequest(model=checkpoint, out=out, force=True, seed=seed, engines=_engines())
    exported = export.run_request(request)
    events = checkpoint.parent / EVENTS
    console.print(f"\nThe bundle on the held-out events {events}:")
    inspect.print_report(exported.folder, events)
    print_lines(["  " + command("inspect", exported.folder, f"--events={events}")])


def _engines() -> EngineOptions | None:
    return EngineOptions(engine.load(None)) if engine.available() else None


def _train(kind: str, checkpoint: Path, seed: int) -> None:
    console.print(f"training {kind} on generated clicks")
    with _training_progress() as progress:
        report = train_demo(kind, checkpoint, seed=seed, progress=progress)
    _print_training(checkpoint, report)


def _print_training(checkpoint: Path, report: TrainingReport) -> None:
    rows = ", ".join(
        f"{side.upper()} {used} of {report.pool_rows[side]}"
        for side, used in report.rows_used.items()
    )
    console.print(
        f"{checkpoint}: trained in {report.seconds:.1f} s, AUC {report.valid_auc:.3f} on held-out "
        f"clicks, pool rows in use {rows}"
    )


@contextlib.contextmanager
def _training_progress() -> Iterator[TrainingProgress]:
    """A bar on a terminal, elsewhere a line for each tenth of the way."""
    if not console.is_terminal:
        yield _print_tenths
        return
    columns = (TextColumn("step {task.completed}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as bar:
        task = bar.add_task("")

        def draw(step: int, steps: int, loss: float) -> None:
            bar.update(task, completed=step, total=steps, description=f"loss {loss:.3f}")

        yield draw


def _print_tenths(step: int, steps: int, loss: float) -> None:
    if step == steps or step % max(steps // 10, 1) < 10:
        console.print(f"  step {step} of {steps}: loss {loss:.3f}")

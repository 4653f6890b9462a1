"""``ckv-export prefill BUNDLE``."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ckv_export.bulk.fill import FillOptions, Tally, fill_store
from ckv_export.cli import options
from ckv_export.cli.show import console, table
from ckv_export.errors import Interrupted

HELP = "fill a store with the records of many users, from a file of their histories"

_WORKERS = 2

Shown = Callable[[Tally, int], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    options.add_bundle(parser)
    parser.add_argument(
        "--events",
        required=True,
        metavar="FILE",
        type=Path,
        help=".parquet with a row and lists of events for each user, or .npz",
    )
    parser.add_argument(
        "--store",
        required=True,
        metavar="URL",
        help="sqlite:///FILE or redis://HOST:PORT/DB",
    )
    parser.add_argument("--user-column", default="user_id", metavar="NAME", help="of user ids")
    options.add_records(parser)
    parser.add_argument(
        "--replace", action="store_true", help="also records that have been appended to"
    )
    parser.add_argument(
        "--restart", action="store_true", help="begin again, whatever earlier runs have done"
    )
    parser.add_argument("--threads", type=options.threads, metavar="N", help="of ONNX Runtime")
    parser.add_argument("--ray", action="store_true", help="spread the work with Ray Data")
    parser.add_argument(
        "--workers", type=options.positive, metavar="N", help=f"of Ray ({_WORKERS})"
    )


def run(args: argparse.Namespace) -> int:
    """Fill, and say what was filled."""
    options.refuse_without(args, "ray", "workers")
    chosen = FillOptions(
        args.bundle,
        args.events,
        args.store,
        args.user_column,
        args.user_dtype,
        args.max_events,
        args.replace,
        args.restart,
        args.threads,
    )
    start = time.perf_counter()
    try:
        with _progress() as shown:
            total = _fill(chosen, (args.workers or _WORKERS) if args.ray else None, shown)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; what is filled stays, and the same command goes on from there"
        ) from None
    _print_summary(args.store, total, time.perf_counter() - start)
    return 0


def _fill(chosen: FillOptions, workers: int | None, shown: Shown) -> Tally:
    if workers is None:
        return fill_store(chosen, shown)
    from ckv_export.bulk.on_ray import fill_on_ray

    return fill_on_ray(chosen, workers, shown)


def _print_summary(store: str, total: Tally, seconds: float) -> None:
    rows = [
        ("users in the file", f"{total.users:,}"),
        ("records written", f"{total.written:,}"),
        ("records kept as they were", f"{total.kept:,}"),
        ("users without events", f"{total.empty:,}"),
        ("done by an earlier run", f"{total.skipped:,}"),
        ("bytes written", f"{total.bytes:,}"),
        ("users a second", f"{(total.users - total.skipped) / seconds:,.0f}"),
    ]
    console.print(table("Filled", ("what", "number"), rows))
    if total.skipped:
        console.print("--restart does again what earlier runs have done.")


@contextlib.contextmanager
def _progress() -> Iterator[Shown]:
    """A bar with the time left on a terminal; elsewhere a line for each tenth of the way."""
    if not console.is_terminal:
        yield _Tenths()
        return
    columns = (TextColumn("{task.completed:,} of {task.total:,} users"), BarColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=1)
        yield lambda total, users: bar.update(task, completed=total.users, total=users)


class _Tenths:
    """Prints a line whenever another tenth of the users is done."""

    def __init__(self) -> None:
        self.start, self.printed = time.perf_counter(), 0

    def __call__(self, total: Tally, users: int) -> None:
        tenths = 10 * total.users // max(users, 1)
        if tenths > self.printed:
            self.printed = tenths
            left = (time.perf_counter() - self.start) * (users / total.users - 1)
            console.print(f"  {total.users:,} of {users:,} users, {left:.0f} s left")

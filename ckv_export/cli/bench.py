"""``ckv-export bench BUNDLE``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ckv_export.bench import compare, report
from ckv_export.bench.describe import expected
from ckv_export.bench.environment import environment
from ckv_export.bench.measure import Settings
from ckv_export.bench.request import RATE_SECONDS, SOURCES, BenchRequest, parse_sweep
from ckv_export.bench.run import run_bench
from ckv_export.bench.ways import PHASES
from ckv_export.bench.workload import Sizes
from ckv_export.cli import options
from ckv_export.cli.files import check_places, whole
from ckv_export.cli.show import ShownStages, console, print_lines, table
from ckv_export.errors import InputError
from ckv_export.manifest import read_manifest

_MARGIN = 5.0

HELP = "measure what serving a bundle costs here, beside no cache, full KV caches and PyTorch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    options.add_bundle(parser)
    parser.add_argument(
        "--checkpoint", metavar="MODEL", type=Path, help="what the bundle was exported from"
    )
    options.add_model(parser)
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="BUNDLE",
        type=Path,
        help="another bundle of the same model, measured in the same run; may be given repeatedly",
    )
    for flag, default, what in (
        ("batch", 1, "users in one call"),
        ("history", None, "events of a history; the model's longest unless given"),
        ("appended", 1, "new events in one call"),
        ("candidates", 100, "candidates of each user"),
        ("threads", 1, "threads of each runtime"),
    ):
        kind = options.positive if flag in ("batch", "candidates") else options.count
        kind = options.threads if flag == "threads" else kind
        parser.add_argument(f"--{flag}", type=kind, metavar="N", default=default, help=what)
    parser.add_argument("--phases", default=",".join(PHASES), help="which phases, with commas")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only ways with TEXT in their name"
    )
    parser.add_argument("--seed", type=options.count, default=0, help="of generated requests")
    _add_measuring(parser)
    _add_outputs(parser)


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds", type=_seconds, default=20.0, help="most time for each phase, all ways together"
    )
    parser.add_argument(
        "--stable",
        type=_seconds,
        default=3.0,
        metavar="PERCENT",
        help="stop earlier where latest medians differ by less",
    )
    parser.add_argument(
        "--latency-bound",
        type=_seconds,
        metavar="MS",
        help="find the highest request rate with p99 within it",
    )
    parser.add_argument(
        "--rate-seconds", type=_seconds, metavar="S", help=f"of each rate tried ({RATE_SECONDS:g})"
    )
    parser.add_argument(
        "--traffic",
        type=options.count,
        default=0,
        metavar="N",
        help="also serve N requests of drawn lengths",
    )
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="AXIS=N,N", help="vary one size at a time"
    )
    parser.add_argument(
        "--source",
        choices=SOURCES,
        default="memory",
        help="where users' bytes lie: memory, a file, or memory that a GPU reads by itself",
    )
    parser.add_argument(
        "--stored", choices=("fp32", "fp16"), default="fp32", help="of users' stored values"
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    for flag, what in (
        ("json", "write the result"),
        ("html", "write a page with plots"),
        ("markdown", "write a table for a README"),
    ):
        parser.add_argument(f"--{flag}", metavar="FILE", type=Path, help=what)
    parser.add_argument(
        "--compare", metavar="OLD", type=Path, help="an earlier --json: exit with 1 if slower"
    )
    parser.add_argument(
        "--margin",
        type=_seconds,
        metavar="PERCENT",
        help=f"slower by less is the same ({_MARGIN:g})",
    )
    parser.add_argument(
        "--any-machine", action="store_true", help="compare with a result from another machine"
    )


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number


def run(args: argparse.Namespace) -> int:
    """Measure, print, write, compare."""
    options.refuse_without(args, "checkpoint", "weights", "params")
    options.refuse_without(args, "latency_bound", "rate_seconds")
    options.refuse_without(args, "compare", "margin", "any_machine")
    old = None if args.compare is None else compare.load(args.compare)
    given = (args.bundle, args.checkpoint, *args.beside)
    check_places(args.json, args.html, args.markdown, given=given)
    request, here = _request(args), environment()
    if old is not None:
        # Told before anything is timed.
        compare.require_comparable(old, expected(request, here), any_machine=args.any_machine)
    result = run_bench(request, ShownStages(), here)
    _print(result)
    _write(args, result)
    return 0 if old is None else _compare(args, old, result)


def _request(args: argparse.Namespace) -> BenchRequest:
    phases = args.phases.split(",")
    if not set(phases) <= set(PHASES):
        raise InputError(f"--phases must be of {', '.join(PHASES)}, got {args.phases!r}")
    longest = read_manifest(args.bundle).model.max_len
    history = longest if args.history is None else args.history
    return BenchRequest(
        bundle=args.bundle,
        sizes=Sizes(args.batch, history, args.appended, args.candidates),
        checkpoint=args.checkpoint,
        weights=args.weights,
        params=args.params,
        threads=args.threads,
        settings=Settings(seconds=args.seconds, tolerance=args.stable / 100),
        phases=phases,
        bound=None if args.latency_bound is None else args.latency_bound / 1000,
        rate_seconds=RATE_SECONDS if args.rate_seconds is None else args.rate_seconds,
        traffic=args.traffic,
        sweep=parse_sweep(args.sweep),
        source=args.source,
        floats=args.stored,
        seed=args.seed,
        only=args.only,
        beside=args.beside,
    )


def _print(result: dict[str, Any]) -> None:
    for title, heads, rows in report.tables(result):
        console.print(table(title, heads, rows))
    print_lines([f"left out: {w['name']}: {w['reason']}" for w in result["left_out"]])


def _write(args: argparse.Namespace, result: dict[str, Any]) -> None:
    for path, form in (
        (args.json, lambda result: json.dumps(result, indent=1) + "\n"),
        (args.html, report.page),
        (args.markdown, report.markdown),
    ):
        if path is not None:
            with whole(path) as file:
                file.write_text(form(result))


def _compare(args: argparse.Namespace, old: dict[str, Any], new: dict[str, Any]) -> int:
    margin = (_MARGIN if args.margin is None else args.margin) / 100
    found = compare.compare(old, new, margin, any_machine=args.any_machine)
    heads = ("way", "phase", "old p50 ms", "new p50 ms", "new / old", "99% interval", "")
    console.print(table(f"Against {args.compare}", heads, [r.row() for r in found.rows]))
    print_lines([f"differs: {note}" for note in found.notes])
    return 1 if found.regressed else 0

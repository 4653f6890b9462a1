"""``ckv-export parity BUNDLE``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ckv_export.cli import options
from ckv_export.cli.files import check_places, whole
from ckv_export.cli.show import ShownStages, console, parity_tables
from ckv_export.deploy.fidelity import USERS, FidelityRequest, check_fidelity
from ckv_export.parity.gate import require_pass
from ckv_export.parity.junit import write_junit
from ckv_export.parity.lineup import NAMES
from ckv_export.parity.page import page, write_json
from ckv_export.parity.report import TOP, ParityReport

HELP = "compare a finished bundle with the reference, on every runtime this machine has"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    options.add_bundle(parser)
    parser.add_argument(
        "--runtime",
        action="append",
        default=[],
        metavar="NAME",
        help=f"only this one, of {', '.join(NAMES)}; repeat for several",
    )
    _add_truth(parser)
    _add_inputs(parser)
    parser.add_argument(
        "--top", type=options.positive, default=TOP, metavar="K", help="best candidates to compare"
    )
    parser.add_argument(
        "--steps",
        type=options.positive,
        default=0,
        metavar="N",
        help="also N requests one after another, each writing back what it returned",
    )
    parser.add_argument(
        "--localize",
        action="store_true",
        help="name the first node of the graph that differs from the one that is believed",
    )
    for flag, what in (("json", "JSON"), ("html", "a page with plots"), ("junit", "JUnit XML")):
        parser.add_argument(
            f"--{flag}", metavar="FILE", type=Path, help=f"write the report as {what}"
        )


def _add_truth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", metavar="MODEL", type=Path, help="the bundle's model: reference and PyTorch"
    )
    options.add_model(parser)
    parser.add_argument(
        "--against", metavar="BUNDLE", type=Path, help="believe this fp32 bundle of the same model"
    )


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--events", metavar="FILE", type=Path, help=".npz or .parquet of real requests"
    )
    parser.add_argument(
        "--labels", metavar="FILE", type=Path, help="label [users, candidates], if not in --events"
    )
    parser.add_argument(
        "--users", type=options.positive, metavar="N", help=f"drawn from --events ({USERS})"
    )
    parser.add_argument(
        "--seed",
        type=options.count,
        help="of drawn events, or of new cases with --checkpoint or --against",
    )


def run(args: argparse.Namespace) -> int:
    """Compare, print, write; raises `ParityFailure` at last if the gate failed."""
    given = (args.bundle, args.checkpoint, args.against, args.events, args.labels)
    check_places(args.json, args.html, args.junit, given=given)
    stages = ShownStages()
    report = check_fidelity(_request(args), stages)
    for each in parity_tables(report):
        console.print(each)
    _write(report, args)
    for outcome in report.outcomes:
        require_pass(outcome)
    return 0


def _request(args: argparse.Namespace) -> FidelityRequest:
    options.refuse_without(args, "checkpoint", "weights", "params")
    options.refuse_without(args, "events", "labels", "users")
    return FidelityRequest(
        bundle=args.bundle,
        runtimes=tuple(args.runtime),
        checkpoint=args.checkpoint,
        weights=args.weights,
        params=args.params,
        against=args.against,
        events=args.events,
        labels=args.labels,
        users=args.users or USERS,
        seed=args.seed,
        top=args.top,
        steps=args.steps,
        localize=args.localize,
    )


def _write(report: ParityReport, args: argparse.Namespace) -> None:
    if args.json is not None:
        with whole(args.json) as path:
            write_json(report, path)
    if args.html is not None:
        with whole(args.html) as path:
            path.write_text(page(report), "utf-8")
    if args.junit is not None:
        with whole(args.junit) as path:
            write_junit(report, path)

"""``ckv-export inspect MODEL|BUNDLE``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ckv_export.cache import CacheReport, check_plot, plot_report
from ckv_export.cache.console import tables
from ckv_export.cache.record import HEADER_BYTES
from ckv_export.cli import options
from ckv_export.cli.files import check_places, whole
from ckv_export.cli.show import console, table
from ckv_export.contract import ModelSpec
from ckv_export.deploy.inspect import Subject, open_subject, report_on

_ID_BYTES = 4

HELP = "what a model caches: bytes per event and user, pool occupancy, spectrum of K and V"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    parser.add_argument(
        "subject",
        metavar="MODEL|BUNDLE",
        type=Path,
        help="a checkpoint, or the folder that export wrote",
    )
    parser.add_argument(
        "--events",
        metavar="FILE",
        type=Path,
        help=".npz or .parquet of event_<feature> and event_mask",
    )
    parser.add_argument(
        "--users", type=options.count, metavar="N", help="also print totals for N users"
    )
    options.add_user_dtype(parser)
    parser.add_argument("--seed", type=options.count, help="of generated events (0)")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="write a .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Print what is cached."""
    options.refuse_with(args, "events", "seed", why="it is of generated events")
    check_places(args.plot, given=(args.subject, args.events))
    if args.plot is not None:
        check_plot(args.plot)
    subject = open_subject(args.subject, args.weights, args.params)
    report = report_on(subject, args.events, args.seed or 0, args.user_dtype, args.users)
    if args.json:
        head: dict[str, Any] = {"name": subject.name, "fingerprint": subject.fingerprint}
        head |= {"item_table": subject.item_table and subject.item_table.to_dict()}
        print(json.dumps(head | {"model": subject.spec.to_dict()} | report.to_dict(), indent=1))
    else:
        console.print(_model_table(subject))
        _print_tables(report)
        _print_item_table(subject, report)
    if args.plot is not None:
        with whole(args.plot) as path:
            plot_report(report, path)
    return 0


def print_report(path: Path, events: Path) -> None:
    """Print what the bundle or model at `path` caches, measured on a file of events."""
    _print_tables(report_on(open_subject(path), events, seed=0, user_dtype="fp16", users=None))


def _print_tables(report: CacheReport) -> None:
    for each in tables(report):
        console.print(each)


def _print_item_table(subject: Subject, report: CacheReport) -> None:
    cost = subject.item_table
    if cost is None:
        return
    events = report.sizes.history_events
    record = HEADER_BYTES + _ID_BYTES * events
    console.print(
        f"With an item table (--item-table) a user's record is the ids of the history alone, "
        f"{record:,} bytes for {events:,} events. The table takes {cost.bytes_per_item} bytes for "
        f"each of {cost.items:,} item ids, {cost.items * cost.bytes_per_item / 1e6:,.1f} MB, once."
    )


def _model_table(subject: Subject) -> object:
    return table(f"Model {subject.name}", ("what", "value"), _facts(subject.spec, subject))


def _facts(spec: ModelSpec, subject: Subject) -> list[tuple[str, object]]:
    attention = spec.attention
    sides = {s: f"{attention.pool_rows(s)} x {attention.d - attention.user_width(s)}" for s in "kv"}
    pools = ", ".join(
        f"{s.upper()} {sides[s] if attention.shared(s) else 'not shared'}" for s in "kv"
    )
    dnn = "-".join(str(width) for width in (*spec.dnn.hidden, 1))
    facts: list[tuple[str, object]] = [
        ("kind", spec.kind),
        ("fingerprint", subject.fingerprint[:16]),
        ("item features", ", ".join(f"{f.name} ({f.kind})" for f in spec.item_features)),
        ("user features", ", ".join(f.name for f in spec.user_features) or "none"),
        ("event embedding d_e", spec.d_event),
        ("attention", f"d {attention.d}, {attention.num_heads} heads, {spec.num_layers} layers"),
        ("pools M x (d - d_u)", pools),
        ("user part d_u", f"K {attention.user_k}, V {attention.user_v}"),
        ("window W", spec.window or "whole history"),
        ("longest history", spec.max_len),
        ("scoring network", f"{dnn}, {'/'.join(dict.fromkeys(spec.dnn.activations)) or 'linear'}"),
    ]
    return [*facts, *((f"option {name}", value) for name, value in spec.options.items())]

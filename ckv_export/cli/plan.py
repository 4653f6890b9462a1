"""``ckv-export plan BUNDLE``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ckv_export.bench import compare
from ckv_export.bench.plan import Demand, measured_ways, not_counted, plans, whole_number
from ckv_export.cli import options
from ckv_export.cli.show import console, table
from ckv_export.errors import InputError
from ckv_export.manifest import read_manifest

HELP = "memory, bandwidth and cores or GPUs for a user base, arithmetic shown"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    options.add_bundle(parser)
    parser.add_argument("--users", required=True, metavar="N", help="up to 1e9")
    parser.add_argument("--history", required=True, metavar="N", help="events of each user")
    parser.add_argument("--requests-per-second", required=True, metavar="N", help="at the peak")
    options.add_user_dtype(parser)
    parser.add_argument(
        "--memory", default="512e9", metavar="BYTES", help="of a server, for caches"
    )
    parser.add_argument(
        "--link", default="12.5e9", metavar="BYTES/S", help="store to server; 100 Gbit/s"
    )
    parser.add_argument(
        "--utilisation",
        type=options.positive,
        default=60,
        metavar="PERCENT",
        help="of a core or GPU, to plan with",
    )
    parser.add_argument(
        "--bench", metavar="FILE", type=Path, help="a --json of ckv-export bench: adds cores, GPUs"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the plans."""
    manifest = read_manifest(args.bundle)
    demand = Demand(
        whole_number(args.users),
        whole_number(args.history),
        whole_number(args.requests_per_second),
        args.user_dtype,
        whole_number(args.memory),
        whole_number(args.link),
        args.utilisation,
    )
    measured = None
    if args.bench is not None:
        result = compare.load(args.bench)
        if result["bundle"]["fingerprint"] != manifest.fingerprint:
            raise InputError(f"{args.bench} was measured with another model than {args.bundle}")
        measured = measured_ways(result, demand.history)
    made = plans(manifest.model, demand, measured)
    left_out = not_counted(manifest, demand)
    if args.json:
        data = [plan.to_dict() | {"not_counted": left_out} for plan in made]
        print(json.dumps(data, indent=1))
        return 0
    for plan in made:
        rows = [(line.what, line.how, line.text) for line in plan.lines]
        console.print(table(f"{plan.cache} cache", ("what", "how", ""), rows))
    console.print(left_out)
    if measured is None:
        console.print("Cores and GPUs need measured times: give --bench FILE.")
    return 0

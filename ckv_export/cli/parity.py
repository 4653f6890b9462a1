"""``ckv-export parity BUNDLE``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ckv_export.cli.show import ShownStages, console, parity_tables
from ckv_export.manifest import open_bundle
from ckv_export.parity.bundle import recheck
from ckv_export.parity.gate import require_pass

HELP = "run the parity gate on a finished bundle, from its files alone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Verify the bundle's hashes, run its graphs, compare."""
    stages = ShownStages()
    with stages.stage("verify hashes") as stage:
        manifest = open_bundle(args.bundle)
        stage.remark = f"{len(manifest.files)} files"
    with stages.stage("parity: ONNX Runtime") as stage:
        report = recheck(args.bundle, manifest)
        stage.remark = f"{report.cases} cases recorded from the reference"
    for each in parity_tables(report):
        console.print(each)
    if args.json is not None:
        args.json.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    for outcome in report.outcomes:
        require_pass(outcome)
    return 0

"""``ckv-export doctor``."""

from __future__ import annotations

import argparse
import json

from ckv_export import doctor
from ckv_export.cli.show import console

HELP = "what is installed here, what that allows, what is missing and how to get it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the findings."""
    findings = doctor.collect()
    if args.json:
        print(json.dumps(doctor.to_dict(findings), indent=1))
    else:
        console.print(doctor.to_table(findings))
    return 0

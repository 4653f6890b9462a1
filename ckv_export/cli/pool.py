"""``ckv-export pool MODEL --bundle BUNDLE --out FILE``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ckv_export.cli import options
from ckv_export.cli.show import console
from ckv_export.deploy.pools import write_pools

HELP = "write a retrained model's pools for a bundle whose graphs take them (--pool input)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="the retrained checkpoint")
    parser.add_argument(
        "--bundle", required=True, metavar="BUNDLE", type=Path, help="exported with --pool input"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", type=Path, help="a .safetensors file, or a folder"
    )
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Write the pools and say whether caches stay valid."""
    new = write_pools(args.bundle, args.model, args.out, weights=args.weights, params=args.params)
    console.print(f"{new.path}: pools of the model {new.fingerprint[:16]}")
    if new.caches_valid:
        console.print("Caches made with the bundle are valid with them.")
    else:
        console.print(
            "[bold yellow]Caches made with the bundle are not valid with them[/]: what a layer "
            "caches depends on the pools of those below it. Prefill again.",
            markup=True,
        )
    return 0

"""``ckv-export refit NEW_BUNDLE --engines-of OLD_BUNDLE``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ckv_export.cli.show import ShownStages, command, console, done, print_lines, table
from ckv_export.deploy.refit import Refitted, refit_bundle

HELP = "put the engines of a bundle, with a retrained model's weights, into its export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    parser.add_argument(
        "bundle",
        metavar="NEW_BUNDLE",
        type=Path,
        help="the retrained model, exported with --pool refit and without engines",
    )
    parser.add_argument(
        "--engines-of",
        required=True,
        metavar="OLD_BUNDLE",
        type=Path,
        help="the bundle whose engines are refitted; it stays as it is",
    )


def run(args: argparse.Namespace) -> int:
    """Refit every engine and say what is still valid and what proves it."""
    refitted = refit_bundle(args.bundle, args.engines_of, ShownStages())
    with done(f"the engines of {args.bundle} are refitted"):
        _print_summary(args.bundle, args.engines_of, refitted)
    return 0


def _print_summary(bundle: Path, old: Path, refitted: Refitted) -> None:
    manifest = refitted.manifest
    rows = [
        (e.file, f"{manifest.files[e.file].bytes / 1e6:.2f} MB", e.backend_version, e.seconds)
        for e in manifest.engines
    ]
    heads = ("file", "size", "version", "seconds")
    console.print(table(f"Engines of {bundle}", heads, rows))
    if refitted.caches_valid:
        console.print(f"Caches made with {old} are valid with them.")
    else:
        console.print(
            f"Caches made with {old} are not valid with them: what is cached of an event has "
            "changed. Prefill again."
        )
    console.print("This proves the engines, on this GPU:")
    print_lines(["  " + command("parity", bundle)])

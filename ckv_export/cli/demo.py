"""``ckv-export demo --out DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train a small real model on generated clicks, then run the whole job on it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    parser.add_argument("--out", default=Path("engines"), metavar="DIR", type=Path)


def run(args: argparse.Namespace) -> int:
    """Not there yet."""
    raise NotImplementedError

"""Write a SIM of the paper's sizes with random weights, to be exported and benchmarked.

python bench/make_model.py --d 256 --heads 8 --out model.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import models

from ckv_export.checkpoint.native import save_native


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for flag, default in (
        ("d", 256),
        ("heads", 8),
        ("d-u", 2),
        ("rows", 10000),
        ("history", 1000),
    ):
        parser.add_argument(f"--{flag}", type=int, default=default)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    spec = models.sim_spec(args.d, args.heads, args.d_u, args.rows, args.history)
    save_native(args.out, spec, models.weights(spec))


if __name__ == "__main__":
    main()

"""Write a model of the paper's sizes with random weights, to be exported and benchmarked.

python bench/make_model.py --d 256 --heads 8 --out model.pt
python bench/make_model.py --kind hstu --d 128 --heads 1 --out hstu.pt --items items.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import models

from ckv_export.checkpoint.native import save_native

SPECS = {"sim": models.sim_spec, "hstu": models.hstu_spec}


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
    parser.add_argument("--kind", choices=SPECS, default="sim")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=Path, help="write features of every item too (.npz)")
    args = parser.parse_args()
    spec = SPECS[args.kind](args.d, args.heads, args.d_u, args.rows, args.history)
    save_native(args.out, spec, models.weights(spec))
    if args.items is not None:
        models.save_items(args.items, spec)


if __name__ == "__main__":
    main()

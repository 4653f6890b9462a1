"""How do decode and the whole request grow with d, d_u and M, and where does compactness pay?

    python bench/bench_sweep.py --json bench/results/sweep.json

For each value a SIM with random weights is exported (window over the whole history, S 1000,
C 100) and measured by ckv-export bench's own code: compact cache, no cache, whole K and V held
and fetched. S, C, B and T are swept on one bundle by ckv-export bench --sweep.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import models

from ckv_export.bench.environment import environment
from ckv_export.bench.measure import Settings
from ckv_export.bench.report import break_even
from ckv_export.bench.request import BenchRequest
from ckv_export.bench.run import run_bench
from ckv_export.bench.workload import Sizes
from ckv_export.checkpoint.native import save_native
from ckv_export.deploy.bundle import ExportRequest, export_bundle
from ckv_export.engine import ProgressListener
from ckv_export.stages import Stages

SCHEMA_VERSION = 1
MIDDLE = {"d": 128, "d_u": 2, "M": 10000}
SWEEPS = {"d": (64, 128, 256), "d_u": (1, 4, 16, 64), "M": (1000, 10000, 65536)}
HISTORY, CANDIDATES, HEADS = 1000, 100, 8


@contextlib.contextmanager
def silent() -> Iterator[ProgressListener]:
    raise AssertionError("no engine is built")
    yield


def bundle(folder: Path, sizes: dict[str, int]) -> tuple[Path, Path]:
    """Checkpoint and bundle of a model of these sizes."""
    spec = models.sim_spec(sizes["d"], HEADS, sizes["d_u"], sizes["M"], HISTORY)
    checkpoint = folder / "model.pt"
    save_native(checkpoint, spec, models.weights(spec))
    request = ExportRequest(checkpoint, folder, parity=False)
    return checkpoint, export_bundle(request, Stages(), silent).folder


def measured(sizes: dict[str, int], seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, exported = bundle(Path(folder), sizes)
        request = BenchRequest(
            exported,
            Sizes(1, HISTORY, 1, CANDIDATES),
            checkpoint,
            settings=Settings(seconds=seconds),
            phases=("decode", "request"),
            only="ONNX Runtime",
        )
        return run_bench(request, Stages(), environment())


def point(axis: str, value: int, seconds: float) -> dict[str, Any]:
    result = measured(MIDDLE | {axis: value}, seconds)
    ways = {w["name"].removeprefix("ONNX Runtime, "): w for w in result["ways"]}
    held, fetched = ways["full KV held"], ways["full KV fetched"]
    full = {"fetched_bytes": fetched["fetched_bytes"], "phases": held["phases"]}
    even = break_even(ways["compact cache"], full)
    times = " ".join(
        f"{name}: {way['phases']['request']['p50_ms']:.2f} ms," for name, way in ways.items()
    )
    link = even["bytes_per_second"]
    limit = "every link" if link is None else f"links below {link / 1e9:.2f} GB/s"
    print(f"{axis} {value}: {times} compact wins on {limit}", flush=True)
    return {"axis": axis, "value": value, "break_even": even, "ways": result["ways"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="most time of each phase")
    parser.add_argument("--only", choices=tuple(SWEEPS), help="one axis")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    made = environment()
    axes = [args.only] if args.only else list(SWEEPS)
    points = [point(axis, value, args.seconds) for axis in axes for value in SWEEPS[axis]]
    if args.json:
        facts = {"schema_version": SCHEMA_VERSION, "environment": made, "points": points}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

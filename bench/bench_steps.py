"""What each change of the decode graph was worth: files exported by several commits, in turn.

    python bench/bench_steps.py before=a52fc34 selection=a9ddbc3 now=HEAD --json steps.json

Every commit exports decode graphs of the same models with the same random weights, in a work tree
of its own; the files then take turns on the same requests in ONNX Runtime, one thread, and their
scores are compared with the first one's. S 1000, C 300, M 10000, d_u 2, three item features of 64.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import models
import numpy as np
from decode_case import Calls, Case, check, timed

from ckv_export.bench.agreement import LEAST_AGREEING
from ckv_export.bench.environment import environment
from ckv_export.bench.measure import Settings
from ckv_export.bench.workload import Sizes, draw_request
from ckv_export.contract import ModelSpec
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.registry import build_model
from ckv_export.parity.tolerances import tolerance_of
from ckv_export.runtimes.base import Arrays
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner
from ckv_export.runtimes.torch import TorchRunner

SCHEMA_VERSION = 1
ROOT = Path(__file__).resolve().parents[1]
KINDS = ("sim", "eta", "twin", "sdim", "hstu")
CASES = [(kind, Case(256, heads)) for kind in KINDS for heads in (1, 8)]
CASES += [("sim", Case(128, 1)), ("sim", Case(128, 8))]


def spec_of(kind: str, case: Case) -> ModelSpec:
    """A model of `kind`; HSTU has two layers and timestamps."""
    sizes = case.d, case.heads, case.d_u, case.rows, case.history
    if kind == "hstu":
        return models.hstu_spec(*sizes)
    sim = models.sim_spec(*sizes)
    options = {"sim": sim.options, "eta": {"topk": 50, "use_scale": True}, "twin": {"topk": 50}}
    options |= {"sdim": {"l2_norm": True}}
    return dataclasses.replace(sim, kind=kind, options=options[kind])


def export_all(folder: Path) -> None:
    """Write every case's decode graph: what an older commit's work tree runs of this script."""
    from ckv_export.onnx_export.export import export_graph
    from ckv_export.onnx_export.save import save_models

    for kind, case in CASES:
        spec = spec_of(kind, case)
        graph = DecodeGraph(build_model(spec, models.weights(spec)))
        save_models({file_name(kind, case): export_graph(graph)}, folder)


def file_name(kind: str, case: Case) -> str:
    return f"{kind}_{case.d}_{case.heads}"


def export_of(commit: str, folder: Path) -> str:
    """Export with the code of `commit`; returns its hash."""
    tree = folder / "tree"
    subprocess.run(
        ["git", "-C", ROOT, "worktree", "add", "-f", "--detach", tree, commit], check=True
    )
    try:
        paths = os.pathsep.join([str(tree), str(tree / "bench"), str(ROOT / "bench")])
        command = [sys.executable, Path(__file__), "--export", folder]
        subprocess.run(command, check=True, cwd=tree, env=os.environ | {"PYTHONPATH": paths})
        hashed = subprocess.run(
            ["git", "-C", tree, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
        )
        return hashed.stdout.strip()
    finally:
        subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)


def feeds_of(spec: ModelSpec, case: Case) -> tuple[DecodeGraph, Arrays]:
    """A decode graph of this code, for its names, and one request with its cache."""
    model = build_model(spec, models.weights(spec))
    prefill, decode = PrefillGraph(model), DecodeGraph(model)
    graphs, sizes = {"prefill": prefill.io, "decode": decode.io}, Sizes(1, 1000, 1, 300)
    request = draw_request(spec, graphs, sizes, np.random.default_rng(0))
    with TorchRunner(prefill, prefill.io) as runner:
        cache = runner.infer(request.prefill_feeds(prefill.io, spec))
    return decode, request.decode_feeds(decode.io, cache)


def measured(kind: str, case: Case, folders: dict[str, Path], settings: Settings) -> dict[str, Any]:
    """Time the files of one case; the ratio of a step is to the first one's."""
    decode, feeds = feeds_of(spec_of(kind, case), case)
    calls: Calls = {}
    for step, folder in folders.items():
        path = folder / f"{file_name(kind, case)}.onnx"
        runner = OnnxRuntimeRunner(path, decode.io, threads=1)
        runner.activate()
        calls[step] = lambda runner=runner: runner.infer(feeds)["score"]
    first = next(iter(calls.values()))()
    check(calls, first, tolerance_of("score", 2).absolute, LEAST_AGREEING)
    return {"kind": kind, **vars(case), "steps": timed(calls, settings, "over_first")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("steps", nargs="*", help="NAME=COMMIT, the first is what others go by")
    parser.add_argument("--seconds", type=float, default=8.0, help="most time of each case")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.export is not None:
        export_all(args.export)
        return
    made = environment()
    commits, results = {}, []
    settings = Settings(warmup=3, window=6, seconds=args.seconds, tolerance=0.02, least=4)
    with tempfile.TemporaryDirectory() as scratch:
        folders = {}
        for given in args.steps:
            step, _, commit = given.partition("=")
            folders[step] = Path(scratch) / step
            folders[step].mkdir()
            commits[step] = export_of(commit, folders[step])
        for kind, case in CASES:
            print(f"{kind}, d {case.d}, {case.heads} heads")
            results.append(measured(kind, case, folders, settings))
    if args.json:
        facts = {"schema_version": SCHEMA_VERSION, "environment": made, "commits": commits}
        args.json.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

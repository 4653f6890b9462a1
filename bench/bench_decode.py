"""How much faster is decode in ONNX Runtime than in PyTorch, and what makes it so?

    python bench/bench_decode.py --json bench/results/decode.json

Two parts of a decode at S 1000, C 300, M 10000, d_u 2, B 1, one thread each:

branch: the CollectiveKV branch alone: query projection, gather, concat, softmax attention.
model:  the whole SIM decode: that branch, the search over the same history, the network.

The rivals run the same split module: PyTorch eager; torch.compile(dynamic=False), for which the
pooled attention is plain tensor operations; for the branch also scaled_dot_product_attention on
the gathered K and V, eager and compiled, the strongest form we know in PyTorch; and for the model
also the layers as they are trained, eager and compiled. Beside them: variants of the branch's graph
that show what each change is worth, decode from an item table, the same with the products of
candidates looked up by item, which no bundle does, and the exported graph in a thread that keeps
numbers below 1.2e-38, as ONNX Runtime does unless told otherwise. All take turns within one run,
and all scores are compared with float64 (branch) or the unsplit reference (model) before anything
is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import models
import numpy as np
import torch
from decode_branch import branch_calls
from decode_case import EXPORTED, Calls, Case, timed
from decode_model import model_calls

from ckv_export.bench.environment import environment
from ckv_export.bench.measure import Settings
from ckv_export.model.registry import build_model

SCHEMA_VERSION = 1
CASES = (Case(128, 1), Case(128, 8), Case(256, 1), Case(256, 8))


def with_tiny_numbers(call: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """`call` in a thread that doesn't take them for zero, as sessions of ours make it do."""

    def kept() -> np.ndarray:
        torch.set_flush_denormal(False)
        try:
            return call()
        finally:
            torch.set_flush_denormal(True)

    return kept


def measured(title: str, calls: Calls, settings: Settings) -> dict[str, object]:
    print(f"\n{title}")
    calls[f"{EXPORTED}, tiny numbers kept"] = with_tiny_numbers(calls[EXPORTED])
    return {"case": title, "timings": timed(calls, settings, "over_exported")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=12.0, help="most time of each part")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = environment()
    settings = Settings(warmup=5, window=10, seconds=args.seconds, tolerance=0.02, least=6)
    results = []
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            spec = models.sim_spec(case.d, case.heads, case.d_u, case.rows, case.history)
            state = models.weights(spec)
            model = build_model(spec, state)
            title = f"d {case.d}, {case.heads} heads"
            results.append(measured(f"branch, {title}", branch_calls(model, case), settings))
            calls = model_calls(model, state, case, Path(folder))
            results.append(measured(f"model, {title}", calls, settings))
    if args.json:
        facts = {"schema_version": SCHEMA_VERSION, "environment": made, "results": results}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

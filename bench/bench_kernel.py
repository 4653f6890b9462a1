"""Time the kernels of plugins/ beside PyTorch, with the floor of each case written first.

    python bench/bench_kernel.py [--cases bench/cases.json] [--only TEXT] [--out results.json]

Prints, per case and dtype, the floor (bytes over the measured copy bandwidth, operations over the
measured rate of matrix products, the larger of the two), then medians with a warm and a cold L2:
ours, PyTorch eager, torch.compile, and scaled_dot_product_attention on keys and values that lie
materialised already, and after our gather-concat. Ours are compared with float64 before anything
of a case is timed. What is measured is written after each case. Exits 2 where there is no GPU, 1
where a result is wrong.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from kernel_cases import MAKERS, Case, Work, wrong
from kernel_rates import Rates, Timer

ROOT = Path(__file__).resolve().parents[1]
SCHEMA_VERSION = 1


def load_kernels() -> ModuleType:
    """plugins/torch/kernels.py: not a package, so taken by its path."""
    path = ROOT / "plugins" / "torch" / "kernels.py"
    spec = importlib.util.spec_from_file_location("ckv_kernels_loader", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_cases(path: Path) -> dict[str, Any]:
    """The cases, or SystemExit with a sentence about what is wrong with them."""
    cases: dict[str, Any] = json.loads(path.read_text())
    version = cases.get("schema_version")
    if version != SCHEMA_VERSION:
        raise SystemExit(f"{path}: schema_version must be {SCHEMA_VERSION}, got {version}")
    for kind in MAKERS:
        names = [case["name"] for case in cases[kind]]
        if len(set(names)) != len(names):
            raise SystemExit(f"{path}: two cases of {kind} have one name")
    return cases


def chosen(cases: Mapping[str, Any], text: str) -> list[tuple[str, Case, torch.dtype]]:
    """The cases whose kind or name holds `text`, in every dtype."""
    return [
        (kind, case, getattr(torch, dtype))
        for kind in MAKERS
        for case in cases[kind]
        if text in f"{kind}: {case['name']}"
        for dtype in cases["dtypes"]
    ]


def verdicts(case: Case, work: Work, floor: float, cold: Mapping[str, float]) -> list[str]:
    """What the case's targets say of the cold medians."""
    ours, best = cold["ours"], min(cold[name] for name in work.rivals)
    said = [f"{ours / floor:.2f} times the floor", f"{best / ours:.2f} times the best rival"]
    if (share := case.get("least_share_of_copy")) is not None:
        said.append(f"share of copy {floor / ours:.2f} (target {share})")
    if (over := case.get("most_over_floor")) is not None:
        said.append(f"target: {over} times the floor")
    if (speedup := case.get("least_speedup")) is not None:
        said.append(f"target: {speedup} times the best rival")
    return said


def run_case(kind: str, case: Case, dtype: torch.dtype, seed: int, rates: Rates, timer: Timer,
             ops: Any) -> dict[str, Any]:  # fmt: skip
    work = MAKERS[kind](ops, case, dtype, seed)
    floor = rates.floor(work.moved, work.operations, dtype)
    told = {"kind": kind, "case": case, "dtype": str(dtype), "floor_us": floor}
    print(f"\n{kind}: {case['name']}, {dtype}: floor {floor:.1f} us")
    ours = {name: way for name, way in work.ways.items() if name.startswith("ours")}
    broken = [name for name, way in ours.items() if wrong(way(), work.expected, dtype)]
    if broken:
        print(f"  WRONG, not timed: {', '.join(broken)}")
        return told | {"wrong": broken}
    medians = {n: [timer.median(w, cold) for cold in (False, True)] for n, w in work.ways.items()}
    for name, (warm, cold) in medians.items():
        print(f"  {name:24} warm {warm:9.1f} us   cold {cold:9.1f} us")
    cold_medians = {name: cold for name, (_, cold) in medians.items()}
    print("  cold: " + "; ".join(verdicts(case, work, floor, cold_medians)))
    return told | {"warm_cold_us": medians}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=Path, default=ROOT / "bench" / "cases.json")
    parser.add_argument("--only", default="", help="cases whose kind or name holds this text")
    parser.add_argument("--out", type=Path, help="write all medians there as JSON")
    options = parser.parse_args()
    cases = load_cases(options.cases)
    kernels = load_kernels()
    if (reason := kernels.why_not()) is not None:
        print(f"bench_kernel: {reason}", file=sys.stderr)
        return 2
    ops = kernels.load()
    timer = Timer()
    dtypes = [getattr(torch, name) for name in cases["dtypes"]]
    rates = Rates.measure(timer, dtypes)
    gpu = torch.cuda.get_device_name()
    print(f"{gpu}, torch {torch.__version__}; copy {rates.copy / 1e3:.0f} GB/s; products "
          + ", ".join(f"{d} {r / 1e6:.1f} TFLOP/s" for d, r in rates.products.items()))  # fmt: skip
    results: list[dict[str, Any]] = []
    facts = {"schema_version": SCHEMA_VERSION, "gpu": gpu, "torch": torch.__version__,
             "copy_bytes_per_us": rates.copy, "results": results}  # fmt: skip
    for kind, case, dtype in chosen(cases, options.only):
        results.append(run_case(kind, case, dtype, cases["seed"], rates, timer, ops))
        if options.out is not None:
            options.out.write_text(json.dumps(facts, indent=1))
    return 1 if any("wrong" in result for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())

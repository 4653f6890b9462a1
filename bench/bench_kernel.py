"""Time the kernels of plugins/ beside PyTorch, with the floor of each case written first.

    python bench/bench_kernel.py [--cases bench/cases.json] [--only TEXT] [--out results.json]

Prints, per case and dtype, the floor (bytes over the measured copy bandwidth, operations over the
measured rate of matrix products, exponentials over theirs, and the largest of the three), then
medians with a warm and a cold L2: ours, PyTorch eager, torch.compile, and
scaled_dot_product_attention on keys and values that lie materialised already, and after our
gather-concat. Our results are compared with float64 before they are timed. A way that is wrong or
fails does not stop the others. Exits 2 where there is no GPU, 1 where a way or the rate of
exponentials failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from kernel_cases import MAKERS, Case, Work, wrong
from kernel_rates import Floor, Rates, Timer

ROOT = Path(__file__).resolve().parents[1]
SCHEMA_VERSION = 1
TARGETS = {"least_share_of_copy", "most_over_floor", "least_speedup"}


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


def verdicts(case: Case, work: Work, floor: Floor, cold: Mapping[str, float]) -> list[str]:
    """What the case's targets say of the cold medians."""
    ours = cold["ours"]
    said = [f"{ours / floor.whole:.2f} times the floor"]
    if work.exponentials:
        said.append(f"{ours / floor.without_exponentials:.2f} times that without exponentials")
    if rivals := [cold[name] for name in work.rivals if name in cold]:
        said.append(f"{min(rivals) / ours:.2f} times the best rival")
    if (share := case.get("least_share_of_copy")) is not None:
        said.append(f"share of copy {floor.whole / ours:.2f} (target {share})")
    if (over := case.get("most_over_floor")) is not None:
        said.append(f"target: {over} times the floor")
    if (speedup := case.get("least_speedup")) is not None:
        said.append(f"target: {speedup} times the best rival")
    return said


def run_case(kind: str, case: Case, dtype: torch.dtype, seed: int, rates: Rates, timer: Timer,
             ops: Any) -> dict[str, Any]:  # fmt: skip
    """The case's medians and, by name, what was wrong with the ways that have none."""
    work = MAKERS[kind](ops, case, dtype, seed)
    floor = rates.floor(work.moved, work.operations, work.exponentials, dtype)
    print(f"\n{kind}: {case['name']}, {dtype}: {floor}")
    medians: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for name, way in work.ways.items():
        try:
            if name.startswith("ours") and wrong(way(), work.expected, dtype):
                raise ValueError("the result is wrong")
            medians[name] = [timer.median(way, cold) for cold in (False, True)]
        # Whatever a compiler or a kernel of another's fails with: the other ways are still told.
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
            print(f"  {name:24} FAILED: {failed[name]}")
        else:
            warm, cold = medians[name]
            print(f"  {name:24} warm {warm:9.1f} us   cold {cold:9.1f} us")
    if "ours" in medians:
        cold_medians = {name: cold for name, (_, cold) in medians.items()}
        print("  cold: " + "; ".join(verdicts(case, work, floor, cold_medians)))
    return {"kind": kind, "case": case, "dtype": str(dtype), "floor_us": floor.whole,
            "floor_terms_us": asdict(floor), "warm_cold_us": medians, "failed": failed}  # fmt: skip


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
    rates = Rates.measure(timer, dtypes, ops)
    gpu = torch.cuda.get_device_name()
    print(f"{gpu}, torch {torch.__version__}; {rates}")
    results: list[dict[str, Any]] = []
    facts = {"schema_version": SCHEMA_VERSION, "gpu": gpu, "torch": torch.__version__,
             "copy_bytes_per_us": rates.copy,
             "operations_per_us": {str(d): r for d, r in rates.products.items()},
             "exponentials_per_us": rates.exponentials,
             "results": results}  # fmt: skip
    chosen = [(kind, case) for kind in MAKERS for case in cases[kind]
              if options.only in f"{kind}: {case['name']}"]  # fmt: skip
    # What has a target comes first, should time run out.
    chosen.sort(key=lambda one: not TARGETS.intersection(one[1]))
    for kind, case in chosen:
        for dtype in dtypes:
            results.append(run_case(kind, case, dtype, cases["seed"], rates, timer, ops))
            if options.out is not None:
                options.out.write_text(json.dumps(facts, indent=1))
    failed = rates.why_no_exponentials or any(result["failed"] for result in results)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

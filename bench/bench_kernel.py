"""Time the kernels of plugins/ beside PyTorch, with the floor of each case written first.

    python bench/bench_kernel.py [--cases bench/cases.json] [--only TEXT] [--out results.json]

Prints, per case and dtype, the floor (bytes over the measured copy bandwidth, operations over the
measured rate of matrix products, the larger of the two), then medians with a warm and a cold L2:
ours, PyTorch eager, torch.compile, and scaled_dot_product_attention on keys and values that lie
materialised already, and after our gather-concat. Results are compared with float64 before
anything is timed. Exits 2 where there is no GPU, 1 where a result is wrong.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
SCHEMA_VERSION = 1
DEVICE = "cuda"
KINDS = ("gather", "attention", "pointwise")
WARMUP, REPEATS = 5, 50
# Half a millisecond in which the GPU does nothing else, so that a call is queued whole before it
# begins: how long a CPU takes to launch ten kernels is not what they take.
HEAD_START = 1_000_000  # cycles
SIDE = 8192  # of the matrices whose product is measured
# Beside sums of unit size, as in plugins/reference/inputs.cpp.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

Case = Mapping[str, Any]


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
    for kind in KINDS:
        names = [case["name"] for case in cases[kind]]
        if len(set(names)) != len(names):
            raise SystemExit(f"{path}: two cases of {kind} have one name")
    return cases


class Timer:
    """Medians in microseconds of the GPU's own time, by CUDA events."""

    def __init__(self) -> None:
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        self._flush = torch.empty(4 * l2, dtype=torch.int8, device=DEVICE)

    def median(self, work: Callable[[], object], cold: bool) -> float:
        times = []
        for _ in range(WARMUP + REPEATS):
            if cold:
                self._flush.zero_()
            torch.cuda._sleep(HEAD_START)
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            stop.record()
            stop.synchronize()
            times.append(1000 * start.elapsed_time(stop))
        return statistics.median(times[WARMUP:])


def product_rate(timer: Timer, dtype: torch.dtype) -> float:
    """Operations per microsecond of a large product.

    One of fp32 is as precise as three of TF32, on tensor cores: whichever is faster counts.
    """

    def rate(tf32: bool) -> float:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        x, y = (torch.randn(SIDE, SIDE, device=DEVICE).to(dtype) for _ in range(2))
        return 2 * SIDE**3 / timer.median(lambda: x @ y, cold=False)

    plain = rate(tf32=False)
    if dtype != torch.float32:
        return plain
    thirds = rate(tf32=True) / 3
    # Left on, it would make fp32 rivals faster and wrong.
    torch.backends.cuda.matmul.allow_tf32 = False
    return max(plain, thirds)


@dataclass(frozen=True)
class Rates:
    """What this GPU does: bytes and operations per microsecond."""

    copy: float
    products: Mapping[torch.dtype, float]

    @classmethod
    def measure(cls, timer: Timer, dtypes: list[torch.dtype]) -> Rates:
        size = 1 << 30
        a, b = (torch.empty(size, dtype=torch.int8, device=DEVICE) for _ in range(2))
        copy = 2 * size / timer.median(lambda: a.copy_(b), cold=False)
        return cls(copy, {dtype: product_rate(timer, dtype) for dtype in dtypes})

    def floor(self, moved: float, operations: float, dtype: torch.dtype) -> float:
        return max(moved / self.copy, operations / self.products[dtype])


@dataclass(frozen=True)
class Work:
    """One case in one dtype: what may be timed, and what to hold it against."""

    ways: Mapping[str, Callable[[], Tensor]]
    expected: Tensor
    moved: float
    operations: float
    # Ways that need keys and values in memory but do not make them are no rivals.
    rivals: tuple[str, ...] = field(default=())


def gathered(pool: Tensor, index: Tensor, user: Tensor) -> Tensor:
    return torch.cat([pool[index], user], dim=-1)


class Inputs:
    """Random tensors of a case on the GPU."""

    def __init__(self, case: Case, dtype: torch.dtype, seed: int) -> None:
        self.generator = torch.Generator(device=DEVICE).manual_seed(seed)
        self.dtype = dtype
        self.batch, self.events = case["B"], case["S"]
        self.width, self.rows = case["d"], case["M"]
        self.user_width = case["d_u"]
        self.key, self.value = self._side(), self._side()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=DEVICE).to(self.dtype)

    def integers(self, high: int, *shape: int) -> Tensor:
        drawn = torch.randint(high, shape, generator=self.generator, device=DEVICE)
        return drawn.to(torch.int32)

    def _side(self) -> tuple[Tensor, Tensor, Tensor]:
        events = (self.batch, self.events)
        pool = self.normal(self.rows, self.width - self.user_width)
        return pool, self.integers(self.rows, *events), self.normal(*events, self.user_width)

    def side_bytes(self) -> float:
        """Distinct pool rows once, indices and user parts."""
        pool, index, user = self.key
        rows = min(self.rows, index.numel())
        return rows * pool.shape[1] * pool.element_size() + index.nbytes + user.nbytes


def gather_work(ops: Any, case: Case, dtype: torch.dtype, seed: int) -> Work:
    inputs = Inputs(case, dtype, seed)
    compiled = torch.compile(gathered)
    expected = gathered(*inputs.key)
    return Work(
        ways={
            "ours": lambda: ops.pool_gather_concat(*inputs.key),
            "eager": lambda: gathered(*inputs.key),
            "torch.compile": lambda: compiled(*inputs.key),
        },
        expected=expected.double(),
        moved=inputs.side_bytes() + expected.nbytes,
        operations=0,
        rivals=("eager", "torch.compile"),
    )


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention_work(ops: Any, case: Case, dtype: torch.dtype, seed: int) -> Work:
    inputs = Inputs(case, dtype, seed)
    heads, candidates = case["heads"], case["C"]
    query = inputs.normal(inputs.batch, candidates, inputs.width)
    mask = torch.ones(inputs.batch, inputs.events, dtype=torch.int32, device=DEVICE)
    mask[:, : int(case.get("padding", 0) * inputs.events)] = 0
    scale = (inputs.width // heads) ** -0.5
    seen = mask.bool()[:, None, None]

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        logits = split_heads(query, heads) @ split_heads(key, heads).transpose(-1, -2) * scale
        weights = torch.where(seen, logits.to(accurate(key)), -1e9).softmax(-1)
        return merged(weights.to(value.dtype) @ split_heads(value, heads))

    def sdpa(key: Tensor, value: Tensor) -> Tensor:
        parts = (split_heads(x, heads) for x in (query, key, value))
        return merged(F.scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale))

    def eager() -> Tensor:
        return plain(query, gathered(*inputs.key), gathered(*inputs.value))

    def ours(tactic: int) -> Callable[[], Tensor]:
        return lambda: ops.pooled_attention(
            query, *inputs.key, *inputs.value, mask, heads, scale, tactic
        )

    def both() -> Tensor:
        rows = (ops.pool_gather_concat(*side) for side in (inputs.key, inputs.value))
        return sdpa(*rows)

    key, value = gathered(*inputs.key), gathered(*inputs.value)
    compiled = torch.compile(eager)
    return Work(
        ways={
            "ours": ours(0),
            "ours, whole": ours(1),
            "ours, split": ours(2),
            "ours, no tensor cores": ours(3),
            "eager": eager,
            "torch.compile": compiled,
            "gather-concat + sdpa": both,
            "sdpa, materialised": lambda: sdpa(key, value),
        },
        expected=plain(query.double(), key.double(), value.double()),
        moved=2 * inputs.side_bytes() + 2 * query.nbytes + mask.nbytes,
        operations=4 * inputs.batch * candidates * inputs.events * inputs.width,
        rivals=("eager", "torch.compile", "gather-concat + sdpa"),
    )


def pointwise_work(ops: Any, case: Case, dtype: torch.dtype, seed: int) -> Work:
    inputs = Inputs(case, dtype, seed)
    heads, candidates = case["heads"], case["C"]
    query = inputs.normal(inputs.batch, candidates, inputs.width)
    links = (inputs.batch, candidates, inputs.events)
    bias, visible = inputs.normal(*links), inputs.integers(2, *links)
    count = visible.sum(-1).clamp(min=1).float()
    scale = (inputs.width // heads) ** -0.5

    def plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        logits = split_heads(query, heads) @ split_heads(key, heads).transpose(-1, -2) * scale
        weights = F.silu(logits + bias.unsqueeze(1)).masked_fill(visible.unsqueeze(1) == 0, 0)
        sums = merged(weights @ split_heads(value, heads))
        return (sums / count.unsqueeze(-1)).to(sums.dtype)

    def eager() -> Tensor:
        return plain(query, gathered(*inputs.key), gathered(*inputs.value), bias)

    key, value = (gathered(*side).double() for side in (inputs.key, inputs.value))
    return Work(
        ways={
            "ours": lambda: ops.pooled_pointwise_attention(
                query, *inputs.key, *inputs.value, bias, visible, count, heads, scale
            ),
            "eager": eager,
            "torch.compile": torch.compile(eager),
        },
        expected=plain(query.double(), key, value, bias.double()),
        moved=2 * inputs.side_bytes() + 2 * query.nbytes + bias.nbytes + visible.nbytes,
        operations=4 * inputs.batch * candidates * inputs.events * inputs.width,
        rivals=("eager", "torch.compile"),
    )


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def accurate(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def wrong(got: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether any element is too far off; NaN always is."""
    size = expected.square().mean().sqrt()
    error = (got.double() - expected).abs()
    return not bool((error <= TOLERANCES[dtype] * (size + expected.abs())).all())


MAKERS = {"gather": gather_work, "attention": attention_work, "pointwise": pointwise_work}


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
    print(f"\n{kind}: {case['name']}, {dtype}: floor {floor:.1f} us")
    for name, way in work.ways.items():
        if name.startswith("ours") and wrong(way(), work.expected, dtype):
            raise SystemExit(f"{kind}: {case['name']}, {dtype}: the result of {name!r} is wrong")
    medians = {n: [timer.median(w, cold) for cold in (False, True)] for n, w in work.ways.items()}
    for name, (warm, cold) in medians.items():
        print(f"  {name:24} warm {warm:9.1f} us   cold {cold:9.1f} us")
    cold_medians = {name: cold for name, (_, cold) in medians.items()}
    print("  cold: " + "; ".join(verdicts(case, work, floor, cold_medians)))
    return {"kind": kind, "case": case, "dtype": str(dtype), "floor_us": floor,
            "warm_cold_us": medians}  # fmt: skip


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
    results = [
        run_case(kind, case, dtype, cases["seed"], rates, timer, ops)
        for kind in KINDS
        for case in cases[kind]
        if options.only in f"{kind}: {case['name']}"
        for dtype in dtypes
    ]
    if options.out is not None:
        facts = {"schema_version": SCHEMA_VERSION, "gpu": gpu, "torch": torch.__version__,
                 "copy_bytes_per_us": rates.copy, "results": results}  # fmt: skip
        options.out.write_text(json.dumps(facts, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How much faster is decode in ONNX Runtime than in PyTorch, and what makes it so?

    python bench/bench_decode.py --json bench/results/decode.json

Two parts of a decode at S 1000, C 300, M 10000, d_u 2, B 1, one thread each:

branch: the CollectiveKV branch alone: query projection, gather, concat, softmax attention.
model:  the whole SIM decode: that branch, the search over the same history, the network.

The rivals run the same split module: PyTorch eager; torch.compile(dynamic=False), for which the
pooled attention is plain tensor operations; and for the branch also scaled_dot_product_attention
on the gathered K and V, eager and compiled, the strongest form we know in PyTorch. Variants of the
branch's graph show what each change is worth. All take turns within one run, and all scores are
compared with float64 (branch) or the unsplit reference (model) before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import models
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from ckv_export.bench.as_trained import TrainedDecode
from ckv_export.bench.environment import environment
from ckv_export.bench.measure import Settings, in_turn
from ckv_export.bench.roster import reference_scores
from ckv_export.bench.statistics import ratio_of_medians
from ckv_export.bench.workload import Sizes, draw_request
from ckv_export.contract import FEATURES, ModelSpec
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model import ops
from ckv_export.model.base import CollectiveModel
from ckv_export.model.collective import CacheEntries
from ckv_export.model.registry import build_model, build_reference
from ckv_export.onnx_export.export import export_graph
from ckv_export.onnx_export.save import save_models
from ckv_export.parity.tolerances import tolerance_of
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner
from ckv_export.runtimes.torch import TorchRunner

SCHEMA_VERSION = 1
HISTORY, CANDIDATES, ROWS, D_U = 1000, 300, 10000, 2
CASES = ((128, 1), (128, 8), (256, 1), (256, 8))
BRANCH_TOLERANCE = 3e-5
"""Beside values of unit size: fp32 sums of a thousand products in another order."""

EXPORTED, COMPILED = "ONNX Runtime", "torch.compile"

Calls = dict[str, Callable[[], np.ndarray]]


# -- the branch alone, as text: a variant changes the lines it is about

_BRANCH = """<ir_version: 10, opset_import: ["" : 20]>
branch (float[B, C, {d_e}] target, int32[B, S] index_k, float[B, S, {d_u}] user_k,
        int32[B, S] index_v, float[B, S, {d_u}] user_v, bool[B, S] mask)
    => (float[B, C, {d}] out) {{
    split = Constant <value_ints = [0, 0, {heads}, {width}]> ()
    merge = Constant <value_ints = [0, 0, {d}]> ()
    factor = Constant <value_float = {scale}> ()
    one = Constant <value_float = 1.0> ()
    far = Constant <value_float = -1000000000.0> ()
    last = Constant <value_ints = [2]> ()
    middle = Constant <value_ints = [1, 2]> ()
    product = MatMul (target, weight)
    gate = Sigmoid (product)
    query = Mul (product, gate)
    scaled = Mul (query, factor)
    query_split = Reshape (scaled, split)
    rows_k = Gather <axis = 0> (pool_k, index_k)
    whole_key = Concat <axis = -1> (rows_k, user_k)
    rows_v = Gather <axis = 0> (pool_v, index_v)
    value = Concat <axis = -1> (rows_v, user_v)
    real = Cast <to = 1> (mask)
    unreal = Sub (one, real)
    added = Mul (unreal, far)
    value_split = Reshape (value, split)
    value_heads = Transpose <perm = [0, 2, 1, 3]> (value_split)
    {logits}
    weights = Softmax <axis = -1> (masked)
    heads = MatMul (weights, value_heads)
    turned = Transpose <perm = [0, 2, 1, 3]> (heads)
    out = Reshape (turned, merge)
}}"""

_WHERE = """key_split = Reshape (whole_key, split)
    key_heads = Transpose <perm = [0, 2, 3, 1]> (key_split)
    query_heads = Transpose <perm = [0, 2, 1, 3]> (query_split)
    logits = MatMul (query_heads, key_heads)
    shown = Unsqueeze (mask, middle)
    masked = Where (shown, logits, far)"""

_ADD = """real_column = Unsqueeze (real, last)
    key = Mul (whole_key, real_column)
    key_split = Reshape (key, split)
    key_heads = Transpose <perm = [0, 2, 3, 1]> (key_split)
    query_heads = Transpose <perm = [0, 2, 1, 3]> (query_split)
    logits = MatMul (query_heads, key_heads)
    added_row = Unsqueeze (added, middle)
    masked = Add (logits, added_row)"""

# The mask as one more column of every head's key, beside a column of ones in the query.
_COLUMN = """real_column = Unsqueeze (real, last)
    key = Mul (whole_key, real_column)
    key_split = Reshape (key, split)
    inner = Constant <value_ints = [2, 3]> ()
    per_head = Constant <value_ints = [1, 1, {heads}, 1]> ()
    added_column = Unsqueeze (added, inner)
    added_heads = Expand (added_column, per_head)
    key_wide = Concat <axis = -1> (key_split, added_heads)
    key_heads = Transpose <perm = [0, 2, 3, 1]> (key_wide)
    pads = Constant <value_ints = [0, 0, 0, 0, 0, 0, 0, 1]> ()
    query_wide = Pad (query_split, pads, one)
    query_heads = Transpose <perm = [0, 2, 1, 3]> (query_wide)
    masked = MatMul (query_heads, key_heads)"""

VARIANTS = {
    f"{EXPORTED}, mask by Where": _WHERE,
    f"{EXPORTED}": _ADD,
    f"{EXPORTED}, mask in the product": _COLUMN,
}


class Branch(nn.Module):
    """The split model's CollectiveKV branch."""

    def __init__(self, model: CollectiveModel) -> None:
        super().__init__()
        self.attention = model.attentions[0]

    def forward(self, target: Tensor, *entries: Tensor) -> Tensor:
        *tensors, mask = entries
        index_k, user_k, index_v, user_v = tensors
        cached = CacheEntries(index_k, index_v, user_k, user_v)
        return self.attention.attend(target, cached, mask, self.attention.pools)


class FusedBranch(Branch):
    """The same by scaled_dot_product_attention."""

    def forward(self, target: Tensor, *entries: Tensor) -> Tensor:
        index_k, user_k, index_v, user_v, mask = entries
        attention = self.attention
        heads = attention.spec.num_heads
        pool_k, pool_v = attention.pools
        assert pool_k is not None
        assert pool_v is not None
        key = torch.cat([pool_k[index_k.long()], user_k], -1)
        value = torch.cat([pool_v[index_v.long()], user_v], -1)
        parts = (ops.split_heads(x, heads) for x in (F.silu(attention.query(target)), key, value))
        shown = mask[:, None, None]
        return ops.merge_heads(
            F.scaled_dot_product_attention(*parts, attn_mask=shown, scale=attention.scale)
        )


def branch_inputs(spec: ModelSpec, rng: np.random.Generator) -> dict[str, np.ndarray]:
    inputs = {"target": rng.standard_normal((1, CANDIDATES, spec.d_event)).astype(np.float32)}
    for side in ("k", "v"):
        inputs[f"index_{side}"] = rng.integers(0, ROWS, (1, HISTORY)).astype(np.int32)
        inputs[f"user_{side}"] = rng.standard_normal((1, HISTORY, D_U)).astype(np.float32)
    return inputs | {"mask": np.arange(HISTORY)[None] >= HISTORY // 20}


def branch_session(text: str, model: CollectiveModel) -> onnxruntime.InferenceSession:
    spec, attention = model.spec.attention, model.attentions[0]
    numbers = {"d": spec.d, "d_e": model.spec.d_event, "d_u": D_U, "heads": spec.num_heads}
    numbers |= {"width": spec.d // spec.num_heads, "scale": repr(attention.scale)}
    graph = onnx.parser.parse_model(_BRANCH.format(logits=text.format(**numbers), **numbers))
    constants = {"weight": attention.query.weight, "pool_k": attention.k.pool}
    for name, tensor in (constants | {"pool_v": attention.v.pool}).items():
        graph.graph.initializer.append(numpy_helper.from_array(tensor.numpy(), name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph.SerializeToString(), options)


def branch_calls(model: CollectiveModel) -> Calls:
    inputs = branch_inputs(model.spec, np.random.default_rng(0))
    tensors = [torch.from_numpy(a) for a in inputs.values()]
    calls: Calls = {}
    for name, text in VARIANTS.items():
        session = branch_session(text, model)
        calls[name] = lambda session=session: session.run(None, inputs)[0]
    branch, fused = Branch(model), FusedBranch(model)
    for name, module in (
        ("PyTorch eager", branch),
        (COMPILED, torch.compile(branch, dynamic=False)),
        ("PyTorch eager, SDPA", fused),
        (f"{COMPILED}, SDPA", torch.compile(fused, dynamic=False)),
    ):
        calls[name] = lambda module=module: module(*tensors).numpy()
    double = [t.double() if t.is_floating_point() else t for t in tensors]
    check(calls, exact_branch(model, *double), BRANCH_TOLERANCE, 1.0)
    return calls


def exact_branch(model: CollectiveModel, *inputs: Tensor) -> np.ndarray:
    """The branch in float64, straight from the formula."""
    target, index_k, user_k, index_v, user_v, mask = inputs
    attention = model.attentions[0]
    key, value = (
        torch.cat([pool.double()[index.long()], user], -1)
        for pool, index, user in (
            (attention.k.pool, index_k, user_k),
            (attention.v.pool, index_v, user_v),
        )
    )
    query = F.silu(target @ attention.query.weight.double())
    parts = []
    heads = (x.chunk(attention.spec.num_heads, -1) for x in (query, key, value))
    for q, k, v in zip(*heads, strict=True):
        logits = (q @ k.transpose(1, 2) * attention.scale).masked_fill(~mask[:, None], -1e9)
        parts.append(logits.softmax(-1) @ v)
    return torch.cat(parts, -1).numpy()


# -- the whole model


def model_calls(model: CollectiveModel, state: Mapping[str, Tensor], folder: Path) -> Calls:
    spec = model.spec
    prefill, decode = PrefillGraph(model), DecodeGraph(model)
    graphs = {"prefill": prefill.io, "decode": decode.io}
    sizes = Sizes(1, HISTORY, 1, CANDIDATES)
    request = draw_request(spec, FEATURES, graphs, sizes, np.random.default_rng(0))
    cache = TorchRunner(prefill, prefill.io)
    with cache:
        feeds = request.decode_feeds(
            decode.io, cache.infer(request.prefill_feeds(prefill.io, spec))
        )
    save_models({"decode": export_graph(decode)}, folder)
    reference = build_reference(spec, state)
    trained = TrainedDecode(reference)
    runners = {
        EXPORTED: OnnxRuntimeRunner(folder / "decode.onnx", decode.io, threads=1),
        "PyTorch eager": TorchRunner(decode, decode.io),
        COMPILED: TorchRunner(torch.compile(decode, dynamic=False), decode.io),
        "PyTorch eager, as trained": TorchRunner(trained, decode.io),
        f"{COMPILED}, as trained": TorchRunner(torch.compile(trained, dynamic=False), decode.io),
    }
    calls: Calls = {}
    for name, runner in runners.items():
        runner.activate()
        calls[name] = lambda runner=runner: runner.infer(feeds)["score"]
    expected = reference_scores(reference, request.inputs)
    # See run.LEAST_AGREEING: a near-tie of the search is no fault of a runtime.
    check(calls, expected, tolerance_of("score").absolute, 0.99)
    return calls


def check(calls: Calls, expected: np.ndarray, bound: float, least: float) -> None:
    for name, call in calls.items():
        differences = np.abs(call() - expected)
        if (differences <= bound).mean() < least:
            raise SystemExit(f"{name}: wrong by up to {differences.max():.1e}")


# -- measuring


def measured(title: str, calls: Calls, settings: Settings) -> dict[str, object]:
    timings = in_turn(calls, settings)
    exported = timings[EXPORTED].windows
    print(f"\n{title}")
    rows = {}
    for name, timing in timings.items():
        ratio = ratio_of_medians(exported, timing.windows)
        rows[name] = timing.to_dict(1) | {"over_exported": vars(ratio)}
        interval = f"{ratio.ratio:5.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        print(f"  {name:36} p50 {rows[name]['p50_ms']:8.3f} ms   x {interval}")
    return {"case": title, "timings": rows}


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
        for d, heads in CASES:
            spec = models.sim_spec(d, heads, D_U, ROWS, HISTORY)
            state = models.weights(spec)
            model = build_model(spec, state)
            title = f"d {d}, {heads} heads"
            results.append(measured(f"branch, {title}", branch_calls(model), settings))
            calls = model_calls(model, state, Path(folder))
            results.append(measured(f"model, {title}", calls, settings))
    if args.json:
        facts = {"schema_version": SCHEMA_VERSION, "environment": made, "results": results}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

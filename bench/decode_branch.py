"""The CollectiveKV branch of a decode alone: as exported, in other forms, and in PyTorch."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from decode_case import COMPILED, EXPORTED, Calls, Case, check
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from ckv_export.contract import ModelSpec
from ckv_export.model import ops
from ckv_export.model.base import CollectiveModel
from ckv_export.model.collective import CacheEntries
from ckv_export.onnx_export.functions import attention_body, gather_body

TOLERANCE = 3e-5
"""Beside values of unit size: fp32 sums of a thousand products in another order."""

# As text: a variant changes the lines it is about.
_BRANCH = """<ir_version: 10, opset_import: ["" : 20, "ckv" : 1]>
branch (float[B, C, {d_e}] target, int32[B, S] index_k, float[B, S, {d_u}] user_k,
        int32[B, S] index_v, float[B, S, {d_u}] user_v, bool[B, S] mask)
    => (float[B, C, {d}] out) {{
    product = MatMul (target, weight)
    gate = Sigmoid (product)
    query = Mul (product, gate)
    {attention}
}}"""

_EXPORTED = """shown = Cast <to = 6> (mask)
    out = ckv.PooledAttention <num_heads = {heads}, scale = {scale}> (
        query, pool_k, index_k, user_k, pool_v, index_v, user_v, shown)"""

_VARIANT = """split = Constant <value_ints = [0, 0, {heads}, {width}]> ()
    merge = Constant <value_ints = [0, 0, {d}]> ()
    factor = Constant <value_float = {scale}> ()
    one = Constant <value_float = 1.0> ()
    far = Constant <value_float = -1000000000.0> ()
    last = Constant <value_ints = [2]> ()
    middle = Constant <value_ints = [1, 2]> ()
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
    out = Reshape (turned, merge)"""

_WHERE = """key_split = Reshape (whole_key, split)
    key_heads = Transpose <perm = [0, 2, 3, 1]> (key_split)
    query_heads = Transpose <perm = [0, 2, 1, 3]> (query_split)
    logits = MatMul (query_heads, key_heads)
    shown = Unsqueeze (mask, middle)
    masked = Where (shown, logits, far)"""

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
    f"{EXPORTED}": _EXPORTED,
    f"{EXPORTED}, mask by Where": _VARIANT.replace("{logits}", _WHERE),
    f"{EXPORTED}, mask in the product": _VARIANT.replace("{logits}", _COLUMN),
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


def branch_inputs(spec: ModelSpec, case: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
    inputs = {"target": rng.standard_normal((1, case.candidates, spec.d_event)).astype(np.float32)}
    for side in ("k", "v"):
        inputs[f"index_{side}"] = rng.integers(0, case.rows, (1, case.history)).astype(np.int32)
        inputs[f"user_{side}"] = rng.standard_normal((1, case.history, case.d_u)).astype(np.float32)
    return inputs | {"mask": np.arange(case.history)[None] >= case.history // 20}


def branch_session(text: str, model: CollectiveModel) -> onnxruntime.InferenceSession:
    spec, attention = model.spec.attention, model.attentions[0]
    numbers = {
        "d": spec.d,
        "d_e": model.spec.d_event,
        "d_u": spec.user_width("k"),
        "heads": spec.num_heads,
    }
    numbers |= {"width": spec.d // spec.num_heads, "scale": repr(attention.scale)}
    graph = onnx.parser.parse_model(_BRANCH.format(attention=text.format(**numbers), **numbers))
    shape = (spec.num_heads, spec.d // spec.num_heads, attention.scale)
    for body in (gather_body(), attention_body("PooledAttention", *shape)):
        graph.functions.append(ir.serde.serialize_function(body))
    constants = {"weight": attention.query.weight, "pool_k": attention.k.pool}
    for name, tensor in (constants | {"pool_v": attention.v.pool}).items():
        graph.graph.initializer.append(numpy_helper.from_array(tensor.numpy(), name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return onnxruntime.InferenceSession(graph.SerializeToString(), options)


def branch_calls(model: CollectiveModel, case: Case) -> Calls:
    """The same inputs through every form, checked against float64."""
    inputs = branch_inputs(model.spec, case, np.random.default_rng(0))
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
    check(calls, exact_branch(model, *double), TOLERANCE, 1.0)
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

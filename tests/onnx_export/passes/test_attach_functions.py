from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from ckv_export.contract import AttentionSpec
from ckv_export.onnx_export.passes import attach_functions

ATTENTION = AttentionSpec(8, 2, 2, 3, 5, 7)
HEAD = '<ir_version: 10, opset_import: ["": 20, "ckv": 1]>'
PLUGIN = 'plugin_namespace = "ckv", plugin_version = "1"'
GATHER = f"""{HEAD}
g (float[5, 6] pool, int32[B, N] index, float[B, N, 2] user) => (float[B, N, 8] out)
{{ out = ckv.PoolGatherConcat <{PLUGIN}> (pool, index, user) }}"""
POOLED = f"""{HEAD}
g (float[B, C, 8] query, float[5, 6] pool_k, int32[B, N] index_k, float[B, N, 2] user_k,
   float[7, 5] pool_v, int32[B, N] index_v, float[B, N, 3] user_v, int32[B, N] mask)
  => (float[B, C, 8] out)
{{ out = ckv.PooledAttention <num_heads = 2, scale = 0.5, {PLUGIN}>
    (query, pool_k, index_k, user_k, pool_v, index_v, user_v, mask) }}"""
POINTWISE = f"""{HEAD}
g (float[B, C, 8] query, float[5, 6] pool_k, int32[B, N] index_k, float[B, N, 2] user_k,
   float[7, 5] pool_v, int32[B, N] index_v, float[B, N, 3] user_v, float[B, C, N] bias,
   int32[B, C, N] visible, float[B, C] count) => (float[B, C, 8] out)
{{ out = ckv.PooledPointwiseAttention <num_heads = 2, scale = 0.5, {PLUGIN}>
    (query, pool_k, index_k, user_k, pool_v, index_v, user_v, bias, visible, count) }}"""


def attached(
    text: str, spec: AttentionSpec = ATTENTION, precision: str = "fp32"
) -> onnx.ModelProto:
    """The model after the pass, whose domain it did not import."""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    model.opset_imports.pop("ckv", None)
    attach_functions.run(model, spec, precision)
    return ir.serde.serialize_model(model)


def run(model: onnx.ModelProto, *inputs: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [i.name for i in model.graph.input]
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]


@pytest.mark.parametrize(
    ("text", "functions"),
    [
        (GATHER, {"PoolGatherConcat"}),
        (POOLED, {"PoolGatherConcat", "PooledAttention"}),
        (POINTWISE, {"PoolGatherConcat", "PooledPointwiseAttention"}),
    ],
)
def test_functions_that_are_used_come_with_those_they_use(text: str, functions: set[str]):
    model = attached(text)
    assert {f.name for f in model.functions} == functions
    assert {f.domain for f in model.functions} == {"ckv"}
    assert {o.domain: o.version for o in model.opset_import} == {"": 20, "ckv": 1}
    onnx.checker.check_model(model, full_check=True)


def test_model_without_our_operators_stays_as_it_was():
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[N] x) => (float[N] y) { y = Neg(x) }'
    model = attached(text)
    assert not model.functions
    assert [o.domain for o in model.opset_import] == [""]


@pytest.mark.parametrize("text", [POOLED, POINTWISE])
def test_bodies_are_made_for_the_precision(text: str):
    """One of another precision would mix types."""
    text = text.replace("float[", "float16[").replace("float16[B, C] count", "float[B, C] count")
    model = attached(text, precision="fp16")
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def pooled(rng: np.random.Generator, pool: int, width: int, user: int, *axes: int) -> tuple:
    return (
        rng.standard_normal((pool, width)).astype(np.float32),
        rng.integers(0, pool, axes).astype(np.int32),
        rng.standard_normal((*axes, user)).astype(np.float32),
    )


def vectors(pool: np.ndarray, index: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Pool rows and user parts side by side, one event after another, in float64."""
    out = np.zeros((*index.shape, pool.shape[1] + user.shape[-1]))
    for at in np.ndindex(index.shape):
        out[at] = [*pool[index[at]], *user[at]]
    return out


@pytest.mark.parametrize("axes", [(2, 3), (1, 1), (0, 2), (2, 0)])
def test_gather_in_onnx_runtime(axes: tuple[int, int], rng: np.random.Generator):
    given = pooled(rng, 5, 6, 2, *axes)
    np.testing.assert_array_equal(run(attached(GATHER), *given), vectors(*given).astype(np.float32))


SIZES = [(2, 3, 4), (1, 1, 1), (3, 2, 0), (2, 0, 3), (0, 2, 3)]


@pytest.mark.parametrize(("users", "candidates", "events"), SIZES)
@pytest.mark.parametrize("scale", [True, False])
def test_softmax_attention_in_onnx_runtime(
    users: int, candidates: int, events: int, scale: bool, rng: np.random.Generator
):
    """The body is made for the specification's heads and scale; a masked event gets -1e9."""
    spec = AttentionSpec(8, 2, 2, 3, 5, 7, use_scale=scale)
    query = rng.standard_normal((users, candidates, 8)).astype(np.float32)
    keys, values = pooled(rng, 5, 6, 2, users, events), pooled(rng, 7, 5, 3, users, events)
    mask = (rng.random((users, events)) < 0.6).astype(np.int32)
    mask[:1] = 0
    got = run(attached(POOLED, spec), query, *keys, *values, mask)
    assert got.shape == (users, candidates, 8)
    key, value = vectors(*keys), vectors(*values)
    for b, c, h in np.ndindex(users, candidates, 2):
        part = slice(4 * h, 4 * h + 4)
        logits = key[b, :, part] @ query[b, c, part].astype(np.float64) * (0.5 if scale else 1.0)
        logits = np.where(mask[b] != 0, logits, -1e9)
        weights = np.exp(logits - logits.max(initial=-1e9))
        expected = weights @ value[b, :, part] / max(weights.sum(), 1e-30)
        # fp32 sums of four products and of as many events
        np.testing.assert_allclose(got[b, c, part], expected, rtol=0, atol=3e-6)


def test_events_that_are_all_masked_weigh_the_same_however_large_a_logit(rng: np.random.Generator):
    """1e9 takes up fp32 steps of 64: what is added must find a logit of zero."""
    query = 1e4 * rng.standard_normal((2, 3, 8)).astype(np.float32)
    keys, values = pooled(rng, 5, 6, 2, 2, 4), pooled(rng, 7, 5, 3, 2, 4)
    got = run(attached(POOLED), query, *keys, *values, np.zeros((2, 4), np.int32))
    expected = np.repeat(vectors(*values).mean(1, keepdims=True), 3, axis=1)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("users", "candidates", "events"), SIZES)
def test_pointwise_attention_in_onnx_runtime(
    users: int, candidates: int, events: int, rng: np.random.Generator
):
    query = rng.standard_normal((users, candidates, 8)).astype(np.float32)
    keys, values = pooled(rng, 5, 6, 2, users, events), pooled(rng, 7, 5, 3, users, events)
    bias = rng.standard_normal((users, candidates, events)).astype(np.float32)
    visible = (rng.random(bias.shape) < 0.6).astype(np.int32)
    count = rng.integers(1, 9, (users, candidates)).astype(np.float32)
    got = run(attached(POINTWISE), query, *keys, *values, bias, visible, count)
    assert got.shape == (users, candidates, 8)
    key, value = vectors(*keys), vectors(*values)
    for b, c, h in np.ndindex(users, candidates, 2):
        part, total = slice(4 * h, 4 * h + 4), np.zeros(4)
        for n in range(events):
            x = float(key[b, n, part] @ query[b, c, part]) * 0.5 + bias[b, c, n]
            total += visible[b, c, n] * x / (1 + np.exp(-x)) * value[b, n, part]
        np.testing.assert_allclose(got[b, c, part], total / count[b, c], rtol=0, atol=3e-6)

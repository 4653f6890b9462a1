"""Bodies of the attention operators in each precision, against loops over single numbers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from ckv_export.onnx_export import functions

HALF = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11}
NAMES = ("PooledAttention", "PooledPointwiseAttention")
USERS, CANDIDATES, EVENTS, WIDTH, HEADS = 2, 3, 7, 8, 2
TRUE = (1, -3)  # any number but 0
SCALE = 7.0**-0.5

Arrays = dict[str, np.ndarray]


def drawn(name: str, precision: str, rng: np.random.Generator) -> Arrays:
    """Inputs of one node; the first user's events are all masked or invisible."""
    shapes = {
        "query": (USERS, CANDIDATES, WIDTH),
        **{"pool_k": (5, 6), "user_k": (USERS, EVENTS, 2)},
        **{"pool_v": (4, 5), "user_v": (USERS, EVENTS, 3)},
        "bias": (USERS, CANDIDATES, EVENTS),
    }
    arrays = {n: rng.standard_normal(s).astype(HALF[precision]) for n, s in shapes.items()}
    for side, rows in (("k", 5), ("v", 4)):
        arrays[f"index_{side}"] = rng.integers(0, rows, (USERS, EVENTS)).astype(np.int32)
    for flag, axes in (("mask", ()), ("visible", (CANDIDATES,))):
        chosen = rng.choice([0, *TRUE], (USERS, *axes, EVENTS))
        arrays[flag] = chosen.astype(np.int32)
    arrays["mask"][0], arrays["visible"][0] = 0, 0
    # Odd and above 2048: in 16 bits it would be another number.
    arrays["count"] = np.full((USERS, CANDIDATES), 4099, np.float32)
    return {n: arrays[n] for n in functions.INPUTS[name]}


def model_of(name: str, precision: str, arrays: Arrays, heads: int = HEADS) -> onnx.ModelProto:
    """One node and its body; every size but that of the pools is dynamic."""
    inputs = [
        ir.Value(
            name=n,
            type=ir.TensorType(ir.tensor(a).dtype),
            shape=ir.Shape(a.shape if n.startswith("pool") else [None] * a.ndim),
        )
        for n, a in arrays.items()
    ]
    attributes = [ir.AttrString(k, v) for k, v in functions.PLUGIN_ATTRIBUTES.items()]
    attributes += [ir.AttrInt64("num_heads", heads), ir.AttrFloat32("scale", SCALE)]
    node = ir.Node(functions.DOMAIN, name, inputs, attributes, num_outputs=1)
    kind = ir.DataType(functions.ELEMENT_TYPES[precision])
    node.outputs[0].name, node.outputs[0].type = "out", ir.TensorType(kind)
    node.outputs[0].shape = ir.Shape([None, None, WIDTH])
    imports = {"": functions.OPSET, functions.DOMAIN: functions.DOMAIN_VERSION}
    graph = ir.Graph(inputs, node.outputs, nodes=[node], name="g", opset_imports=imports)
    body = functions.attention_body(name, heads, WIDTH // heads, SCALE, precision)
    bodies = [functions.gather_body(), body]
    model = ir.to_proto(ir.Model(graph, ir_version=10, functions=bodies))
    onnx.checker.check_model(model, full_check=True)
    return model


def expected(name: str, a: Arrays, heads: int) -> np.ndarray:
    """In float64, one query head at a time."""
    a = {n: x.astype(np.float64 if x.dtype.kind not in "iu" else x.dtype) for n, x in a.items()}
    out = np.zeros((USERS, CANDIDATES, WIDTH))
    per_head = WIDTH // heads
    for b, c, h in np.ndindex(USERS, CANDIDATES, heads):
        part = slice(per_head * h, per_head * (h + 1))
        k, v = (
            np.concatenate([a[f"pool_{s}"][a[f"index_{s}"][b]], a[f"user_{s}"][b]], axis=-1)
            for s in "kv"
        )
        logits = k[:, part] @ a["query"][b, c, part] * SCALE
        if name == "PooledAttention":
            logits = np.where(a["mask"][b] != 0, logits, -1e9)
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
        else:
            x = logits + a["bias"][b, c]
            weights = np.where(a["visible"][b, c] != 0, x / (1 + np.exp(-x)), 0) / 4099
        out[b, c, part] = weights @ v[:, part]
    return out


def run(name: str, precision: str, arrays: Arrays, heads: int = HEADS) -> np.ndarray:
    """What ONNX Runtime makes of one node."""
    model = model_of(name, precision, arrays, heads).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, arrays)
    return got


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("precision", ROUNDOFF)
@pytest.mark.parametrize("name", NAMES)
def test_body_computes_the_formula(name: str, precision: str, heads: int, rng: np.random.Generator):
    arrays = drawn(name, precision, rng)
    got = run(name, precision, arrays, heads)
    want = expected(name, arrays, heads)
    assert got.dtype == HALF[precision]
    size = np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=16 * ROUNDOFF[precision] * size)
    assert np.ptp(want[1]) > 0.01 * size


def test_masked_events_weigh_nothing_however_little_the_others_match(rng: np.random.Generator):
    arrays = drawn("PooledAttention", "fp32", rng)
    for name in ("pool_k", "user_k"):
        arrays[name] = 1 + np.abs(arrays[name])
    arrays["query"][:] = -1e7
    arrays["mask"][1] = np.arange(EVENTS) > 2
    before = run("PooledAttention", "fp32", arrays)
    values = np.concatenate([arrays["pool_v"][arrays["index_v"][0]], arrays["user_v"][0]], axis=-1)
    mean = np.broadcast_to(values.mean(0), before[0].shape)
    np.testing.assert_allclose(before[0], mean, atol=1e-6, err_msg="all are masked: all alike")
    arrays["user_v"][1, :3] += 1
    np.testing.assert_array_equal(run("PooledAttention", "fp32", arrays)[1], before[1])


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_body_has_the_types_it_should(name: str, rng: np.random.Generator):
    """ONNX Runtime has no such product on a CPU; strict type inference reads every node."""
    model = model_of(name, "bf16", drawn(name, "bf16", rng))
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    kind = inferred.graph.output[0].type.tensor_type.elem_type
    assert kind == onnx.TensorProto.BFLOAT16


@pytest.mark.parametrize("name", NAMES)
def test_one_head_is_neither_split_nor_merged(name: str):
    body = functions.attention_body(name, 1, WIDTH, SCALE)
    kinds = [node.op_type for node in body]
    assert "Reshape" not in kinds
    assert kinds.count("Transpose") == 1, "the keys, as their product takes them"


@pytest.mark.parametrize("name", NAMES)
def test_casts_stand_around_the_products_only_in_half_precision(name: str):
    def casts(precision: str) -> list[int]:
        body = functions.attention_body(name, HEADS, 4, SCALE, precision)
        return [n.attributes["to"].value for n in body if n.op_type == "Cast"]

    plain = casts("fp32")
    assert onnx.TensorProto.FLOAT16 not in plain
    for precision in ("fp16", "bf16"):
        narrow = functions.ELEMENT_TYPES[precision]
        added = casts(precision)
        assert added.count(narrow) >= 2, "the query's factor and the weights"
        assert added.count(onnx.TensorProto.FLOAT) > plain.count(onnx.TensorProto.FLOAT)
    body = functions.attention_body(name, HEADS, 4, SCALE, "fp16")
    wide = {
        n.outputs[0].name for n in body if n.op_type == "Cast" and n.attributes["to"].value == 1
    }
    for node in body:
        if node.op_type in ("Softmax", "Sigmoid"):
            upstream = node.inputs[0]
            while upstream.name not in wide:
                upstream = upstream.producer().inputs[0]

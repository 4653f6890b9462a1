"""The C++ reference and the emulated kernels against PyTorch and against the ONNX bodies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from ckv_native import DTYPES, TACTICS, Cpu, Floats, Ints, Part, Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckv_export.model import pooled
from ckv_export.onnx_export import functions

pytestmark = pytest.mark.usefixtures("one_thread")

many = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Each example is a session of its own.
bodies = settings(many, max_examples=40)

# Beside sums of unit size: fp32 sums in another order; 16 bits round outputs and softmax weights.
TOLERANCES = {"fp32": 2e-5, "fp16": 4e-3, "bf16": 3e-2}


@dataclass(frozen=True)
class Case:
    """One call of the attention operators."""

    query: Floats
    key: Part
    value: Part
    mask: Ints
    bias: Floats
    visible: Ints
    count: Floats
    heads: int
    scale: float

    @property
    def softmax(self) -> tuple[object, ...]:
        return self.query, self.key, self.value, self.mask, self.heads, self.scale

    @property
    def pointwise(self) -> tuple[object, ...]:
        links = (self.bias, self.visible, self.count)
        return self.query, self.key, self.value, *links, self.heads, self.scale


@st.composite
def cases(draw: st.DrawFn, good_indices: bool = False, most_events: int = 70) -> Case:
    """Empty N, C = 0, d_u = 0 or d, masked rows and, on request only, no bad index."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, queries = draw(st.integers(1, 3)), draw(st.integers(0, 19))
    events = draw(st.integers(0, most_events))
    heads, head_width = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 5, 8, 33]))
    width = heads * head_width

    def part() -> Part:
        rows, user = draw(st.integers(1, 9)), draw(st.integers(0, width))
        low, high = (0, rows - 1) if good_indices else (-2, rows + 1)
        index = rng.integers(low, high, (batch, events), np.int32, endpoint=True)
        # Somewhere far outside as well: an address computed from it would not be mapped.
        if not good_indices and index.size:
            index.flat[rng.integers(index.size)] = rng.choice([-(2**31), 2**31 - 1])
        pool = rng.standard_normal((rows, width - user), np.float32)
        return Part(pool, index, rng.standard_normal((batch, events, user), np.float32))

    mask = (rng.random((batch, events)) < draw(st.sampled_from([0.0, 0.5, 1.0]))).astype(np.int32)
    links = (batch, queries, events)
    return Case(
        query=rng.standard_normal((batch, queries, width), np.float32),
        key=part(),
        value=part(),
        mask=mask,
        bias=rng.standard_normal(links, np.float32),
        visible=(rng.random(links) < 0.7).astype(np.int32),
        count=rng.integers(1, 9, (batch, queries)).astype(np.float32),
        heads=heads,
        scale=draw(st.sampled_from([1.0, head_width**-0.5])),
    )


@st.composite
def runs(draw: st.DrawFn) -> Run:
    return Run(
        dtype=draw(st.sampled_from(list(DTYPES))),
        tactic=draw(st.sampled_from(list(TACTICS))),
        alignment=draw(st.sampled_from([1, 16])),
        padding=draw(st.sampled_from([0, 1, 2, 8])),
        capability=draw(st.sampled_from([75, 90])),
        seed=draw(st.integers(0, 999)),
    )


def good(part: Part) -> torch.Tensor:
    index = torch.from_numpy(part.index)
    return (index >= 0) & (index < part.pool.shape[0])


def padded(part: Part) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pool, index and user part in float64, with one more row, of zeros, for bad indices."""
    pool = torch.from_numpy(part.pool).double()
    pool = torch.cat([pool, pool.new_zeros(1, pool.shape[1])])
    index = torch.where(good(part), torch.from_numpy(part.index), len(pool) - 1)
    return pool, index.to(torch.int32), torch.from_numpy(part.user).double()


def softmax_in_torch(case: Case) -> np.ndarray:
    mask = torch.from_numpy(case.mask).bool() & good(case.key) & good(case.value)
    query = torch.from_numpy(case.query).double()
    rows = (*padded(case.key), *padded(case.value))
    return pooled.pooled_attention(query, *rows, mask.int(), case.heads, case.scale).numpy()


def pointwise_in_torch(case: Case) -> np.ndarray:
    kept = (good(case.key) & good(case.value))[:, None]
    links = (
        torch.from_numpy(case.bias).double(),
        (torch.from_numpy(case.visible).bool() & kept).int(),
        torch.from_numpy(case.count).double(),
    )
    query = torch.from_numpy(case.query).double()
    rows = (*padded(case.key), *padded(case.value))
    out = pooled.pooled_pointwise_attention(query, *rows, *links, case.heads, case.scale)
    return out.numpy()


def close(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    """Within `tolerance` of each element and of the size of what is summed; NaN never is."""
    size = np.sqrt(np.mean(np.square(want))) if want.size else 0.0
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * (size + 1e-30))


def bad_events(case: Case) -> int:
    return int((~(good(case.key) & good(case.value))).sum())


@given(case=cases())
@many
def test_gather_concat_is_torchs(cpu: Cpu, case: Case) -> None:
    got, bad = cpu.pool_gather_concat(case.key)
    want = pooled.pool_gather_concat(*padded(case.key))
    np.testing.assert_array_equal(got, want.float().numpy())
    assert bad == int((~good(case.key)).sum())


@given(case=cases())
@many
def test_softmax_attention_is_torchs(cpu: Cpu, case: Case) -> None:
    got, bad = cpu.attention(*case.softmax)
    close(got, softmax_in_torch(case), 1e-9)
    assert bad == bad_events(case)


@given(case=cases())
@many
def test_pointwise_attention_is_hstus(cpu: Cpu, case: Case) -> None:
    got, bad = cpu.pointwise(*case.pointwise)
    close(got, pointwise_in_torch(case), 1e-9)
    assert bad == bad_events(case)


def run_node(name: str, body: ir.Function, arrays: Sequence[np.ndarray], case: Case) -> np.ndarray:
    """One node of domain ckv with its body, by ONNX Runtime."""
    named = dict(zip(functions.INPUTS[name], arrays, strict=True))
    inputs = [
        ir.Value(name=n, type=ir.TensorType(ir.tensor(a).dtype), shape=ir.Shape(a.shape))
        for n, a in named.items()
    ]
    attributes = [ir.AttrString(k, v) for k, v in functions.PLUGIN_ATTRIBUTES.items()]
    if name != "PoolGatherConcat":
        attributes += [ir.AttrInt64("num_heads", case.heads), ir.AttrFloat32("scale", case.scale)]
    node = ir.Node(functions.DOMAIN, name, inputs, attributes, num_outputs=1)
    node.outputs[0].name, node.outputs[0].type = "out", ir.TensorType(ir.DataType.FLOAT)
    imports = {"": functions.OPSET, functions.DOMAIN: functions.DOMAIN_VERSION}
    graph = ir.Graph(inputs, node.outputs, nodes=[node], name="g", opset_imports=imports)
    model = ir.Model(graph, ir_version=9, functions=[functions.gather_body(), body])
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (out,) = session.run(None, named)
    return out


@given(case=cases(good_indices=True))
@bodies
def test_gather_concat_is_its_onnx_body(cpu: Cpu, case: Case) -> None:
    part = case.key
    arrays = (part.pool, part.index, part.user)
    want = run_node("PoolGatherConcat", functions.gather_body(), arrays, case)
    np.testing.assert_array_equal(cpu.pool_gather_concat(part)[0], want)


@pytest.mark.parametrize("name", ["PooledAttention", "PooledPointwiseAttention"])
@given(case=cases(good_indices=True))
@bodies
def test_attention_is_its_onnx_body(cpu: Cpu, name: str, case: Case) -> None:
    width = case.query.shape[-1] // case.heads
    body = functions.attention_body(name, case.heads, width, case.scale)
    rows = [getattr(p, part) for p in (case.key, case.value) for part in ("pool", "index", "user")]
    softmax = name == "PooledAttention"
    links = (case.mask,) if softmax else (case.bias, case.visible, case.count)
    want = run_node(name, body, (case.query, *rows, *links), case)
    got = cpu.attention(*case.softmax) if softmax else cpu.pointwise(*case.pointwise)
    close(got[0], want, 3e-5)


def rounded(cpu: Cpu, case: Case, dtype: str) -> Case:
    def part(p: Part) -> Part:
        return Part(cpu.rounded(p.pool, dtype), p.index, cpu.rounded(p.user, dtype))

    return dataclasses.replace(
        case,
        query=cpu.rounded(case.query, dtype),
        bias=cpu.rounded(case.bias, dtype),
        key=part(case.key),
        value=part(case.value),
    )


@given(case=cases(), run=runs())
@many
def test_gather_kernel_moves_bits(cpu: Cpu, case: Case, run: Run) -> None:
    case = rounded(cpu, case, run.dtype)
    got, bad = cpu.pool_gather_concat(case.key, run)
    want, expected = cpu.pool_gather_concat(case.key)
    np.testing.assert_array_equal(got, want)
    assert bad == expected


@given(case=cases(most_events=200), run=runs())
@many
def test_softmax_kernels(cpu: Cpu, case: Case, run: Run) -> None:
    case = rounded(cpu, case, run.dtype)
    got, bad = cpu.attention(*case.softmax, run)
    want, expected = cpu.attention(*case.softmax)
    close(got, want, TOLERANCES[run.dtype])
    assert bad == expected or not case.query.size


@given(case=cases(most_events=200), run=runs())
@many
def test_pointwise_kernels(cpu: Cpu, case: Case, run: Run) -> None:
    case = rounded(cpu, case, run.dtype)
    got, bad = cpu.pointwise(*case.pointwise, run)
    want, expected = cpu.pointwise(*case.pointwise)
    close(got, want, TOLERANCES[run.dtype])
    assert bad == expected or not case.query.size


@pytest.mark.parametrize("run", [Run("fp16", t, capability=c) for t in TACTICS for c in (75, 90)])
def test_threads_may_run_in_any_order(cpu: Cpu, rng: np.random.Generator, run: Run) -> None:
    """A result that depends on the order of threads is a race."""
    part = Part(
        rng.standard_normal((7, 30), np.float32),
        rng.integers(0, 7, (2, 150), np.int32),
        rng.standard_normal((2, 150, 2), np.float32),
    )
    query = rng.standard_normal((2, 5, 32), np.float32)
    mask = np.ones((2, 150), np.int32)
    outs = [
        cpu.attention(query, part, part, mask, 2, 0.25, dataclasses.replace(run, seed=seed))[0]
        for seed in range(6)
    ]
    for out in outs[1:]:
        np.testing.assert_array_equal(out, outs[0])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_negative_scale_weighs_the_lowest_score_most(
    cpu: Cpu, rng: np.random.Generator, dtype: str
) -> None:
    """Tensor cores look for a tile's highest score before they scale."""
    part = Part(
        cpu.rounded(rng.standard_normal((50, 30), np.float32), dtype),
        rng.integers(0, 50, (2, 150), np.int32),
        cpu.rounded(rng.standard_normal((2, 150, 2), np.float32), dtype),
    )
    query = cpu.rounded(4 * rng.standard_normal((2, 5, 32), np.float32), dtype)
    call = (query, part, part, np.ones((2, 150), np.int32), 2, -1.0)
    got = cpu.attention(*call, Run(dtype, "whole"))[0]
    close(got, cpu.attention(*call)[0], TOLERANCES[dtype])

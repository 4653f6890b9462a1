"""The cases of bench_kernel.py: our kernels and their rivals on the same random tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

DEVICE = "cuda"
# Beside sums of unit size, as in plugins/reference/inputs.cpp.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

Case = Mapping[str, Any]
Side = tuple[Tensor, Tensor, Tensor]  # pool, indices, user parts


@dataclass(frozen=True)
class Work:
    """One case in one dtype: what may be timed, and what to hold it against."""

    ways: Mapping[str, Callable[[], Tensor]]
    expected: Tensor
    moved: float
    operations: float
    exponentials: float
    # Ways that need keys and values in memory but do not make them are no rivals.
    rivals: tuple[str, ...] = field(default=())


def compiled(way: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`way` by torch.compile for the shapes of one case, whatever was compiled before.

    Left to itself, it would compile a function's second case for any shape, and after the eighth
    hand back the function as it is: the rival would be the eager one by another name.
    """
    torch.compiler.reset()
    return torch.compile(way, fullgraph=True, dynamic=False)


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

    def _side(self) -> Side:
        events = (self.batch, self.events)
        pool = self.normal(self.rows, self.width - self.user_width)
        return pool, self.integers(self.rows, *events), self.normal(*events, self.user_width)


def bytes_from(first: int, *sides: Side) -> int:
    """Distinct pool rows once, indices and user parts, of the events from `first` on."""
    moved = 0
    for pool, index, user in sides:
        seen = index[:, first:]
        moved += seen.unique().numel() * pool.shape[1] * pool.element_size()
        moved += seen.nbytes + user[:, first:].nbytes
    return moved


def gather_work(ops: Any, case: Case, dtype: torch.dtype, seed: int) -> Work:
    inputs = Inputs(case, dtype, seed)
    expected, by_compiler = gathered(*inputs.key), compiled(gathered)
    return Work(
        ways={
            "ours": lambda: ops.pool_gather_concat(*inputs.key),
            "eager": lambda: gathered(*inputs.key),
            "torch.compile": lambda: by_compiler(*inputs.key),
        },
        expected=expected.double(),
        moved=bytes_from(0, inputs.key) + expected.nbytes,
        operations=0,
        exponentials=0,
        rivals=("eager", "torch.compile"),
    )


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention_work(ops: Any, case: Case, dtype: torch.dtype, seed: int) -> Work:
    inputs = Inputs(case, dtype, seed)
    heads, candidates = case["heads"], case["C"]
    query = inputs.normal(inputs.batch, candidates, inputs.width)
    mask = torch.ones(inputs.batch, inputs.events, dtype=torch.int32, device=DEVICE)
    first = int(case.get("padding", 0) * inputs.events)
    mask[:, :first] = 0
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
    return Work(
        ways={
            "ours": ours(0),
            "ours, whole": ours(1),
            "ours, split": ours(2),
            "ours, no tensor cores": ours(3),
            "eager": eager,
            "torch.compile": compiled(eager),
            "gather-concat + sdpa": both,
            "sdpa, materialised": lambda: sdpa(key, value),
        },
        expected=plain(query.double(), key.double(), value.double()),
        moved=bytes_from(first, inputs.key, inputs.value) + 2 * query.nbytes + mask.nbytes,
        operations=4 * inputs.batch * candidates * (inputs.events - first) * inputs.width,
        exponentials=inputs.batch * candidates * (inputs.events - first) * heads,
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
            "torch.compile": compiled(eager),
        },
        expected=plain(query.double(), key, value, bias.double()),
        moved=bytes_from(0, inputs.key, inputs.value)
        + 2 * query.nbytes
        + bias.nbytes
        + visible.nbytes,
        operations=4 * inputs.batch * candidates * inputs.events * inputs.width,
        # One a pair: a SiLU can do with one tanh, though ours is an exponential and a division.
        exponentials=inputs.batch * candidates * inputs.events * heads,
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

"""The kernels on a GPU, through the PyTorch binding, against float64 on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ckv_export.model import pooled

pytestmark = pytest.mark.gpu

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# B, C, N, heads, d, d_u, M
SHAPES = [
    (1, 1, 0, 1, 4, 1, 5),
    (2, 3, 5, 1, 4, 0, 3),
    (3, 17, 65, 2, 64, 2, 11),
    (2, 128, 500, 8, 256, 2, 1000),
    (1, 1, 3000, 8, 256, 3, 1000),
    (2, 50, 333, 1, 256, 4, 1000),
    (1, 9, 777, 1, 512, 4, 300),
]


@pytest.fixture(scope="module")
def kernels() -> Any:
    spec = importlib.util.spec_from_file_location("kernels", PLUGINS / "torch" / "kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if (reason := module.why_not()) is not None:
        pytest.skip(reason)
    return module.load()


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """PyTorch fills fresh memory with NaN, so that what a kernel leaves unwritten is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


class Drawn:
    """Tensors of one call, on the CPU; indices from [-1, M]."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, rng: np.random.Generator):
        batch, queries, events, self.heads, width, user, rows = shape
        self.dtype, self.rng = dtype, rng
        self.query = self.normal(batch, queries, width)
        self.sides = [
            (
                self.normal(rows, width - user),
                self.integers(-1, rows, batch, events),
                self.normal(batch, events, user),
            )
            for _ in "kv"
        ]
        self.mask = self.integers(0, 1, batch, events)
        self.mask[0] = 0
        self.bias = self.normal(batch, queries, events)
        self.visible = self.integers(0, 1, batch, queries, events)
        self.count = torch.full((batch, queries), 3.0)
        self.scale = (width // self.heads) ** -0.5

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(shape)).to(self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.from_numpy(self.rng.integers(low, high, shape, np.int32, endpoint=True))

    def good(self) -> Tensor:
        kept = [(index >= 0) & (index < len(pool)) for pool, index, _ in self.sides]
        return kept[0] & kept[1]

    def rows64(self) -> list[Tensor]:
        rows = []
        for pool, index, user in self.sides:
            good = (index >= 0) & (index < len(pool))
            padded = torch.cat([pool.double(), torch.zeros(1, pool.shape[1], dtype=torch.float64)])
            rows += [padded, torch.where(good, index, len(pool)).int(), user.double()]
        return rows

    def softmax(self) -> Tensor:
        mask = self.mask.bool() & self.good()
        return pooled.pooled_attention(
            self.query.double(), *self.rows64(), mask.int(), self.heads, self.scale
        )

    def pointwise(self) -> Tensor:
        visible = self.visible.bool() & self.good()[:, None]
        links = self.bias.double(), visible.int(), self.count.double()
        return pooled.pooled_pointwise_attention(
            self.query.double(), *self.rows64(), *links, self.heads, self.scale
        )

    def on_gpu(self) -> list[Tensor]:
        return [t.cuda() for side in self.sides for t in side]


def check(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    size = want.square().mean().sqrt() if want.numel() else 0.0
    error = (got.cpu().double() - want).abs()
    assert (error <= TOLERANCES[dtype] * (size + want.abs())).all(), error.max()


def counted(call: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
    """What `call` returns, and its debug counter."""
    bad = torch.zeros(1, dtype=torch.int32, device="cuda")
    return call(bad), int(bad)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_gather(kernels: Any, rng: np.random.Generator, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        check_gather(kernels, Drawn(shape, dtype, rng))


def check_gather(kernels: Any, drawn: Drawn) -> None:
    pool, index, user = drawn.sides[0]
    got, bad = counted(
        lambda bad: kernels.pool_gather_concat(pool.cuda(), index.cuda(), user.cuda(), bad)
    )
    torch.testing.assert_close(
        got.cpu().double(), pooled.pool_gather_concat(*drawn.rows64()[:3]), rtol=0, atol=0
    )
    assert bad == int(((index < 0) | (index >= len(pool))).sum())


@pytest.mark.parametrize("tactic", range(5))
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_attention(kernels: Any, rng: np.random.Generator, dtype: torch.dtype, tactic: int) -> None:
    for shape in SHAPES:
        check_attention(kernels, Drawn(shape, dtype, rng), tactic)


def check_attention(kernels: Any, drawn: Drawn, tactic: int) -> None:
    query, rows = drawn.query.cuda(), drawn.on_gpu()
    last = drawn.heads, drawn.scale, tactic
    expected = int((~drawn.good()).sum())
    got, bad = counted(
        lambda bad: kernels.pooled_attention(query, *rows, drawn.mask.cuda(), *last, bad)
    )
    check(got, drawn.softmax(), drawn.dtype)
    assert bad == expected
    links = drawn.bias.cuda(), drawn.visible.cuda(), drawn.count.cuda()
    got, bad = counted(
        lambda bad: kernels.pooled_pointwise_attention(query, *rows, *links, *last, bad)
    )
    check(got, drawn.pointwise(), drawn.dtype)
    assert bad == expected

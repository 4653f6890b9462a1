"""CollectiveKV attention split in two: what is cached per event, and what decode does with it.

Per event and side, ``u = silu(W x)`` and ``i = argmax(W_r x)`` are cached; the vector is
``silu(concat(P[i], u))`` (arXiv 2601.19178). The last silu is folded: into the pool when the
module is built, into the user part when it is cached. Decode is left with a gather and a concat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckv_export.contract import AttentionSpec, CacheSpec
from ckv_export.model import ops
from ckv_export.model.embedding import Projection, ReducibleProjection, frozen
from ckv_export.model.pooled import attend, attend_pointwise, gather_concat, in_place
from ckv_export.model.precision import Reducible, reduced

SIDES = ("k", "v")

_gather_concat, _attend, _attend_pointwise = (
    in_place(computation) for computation in (gather_concat, attend, attend_pointwise)
)

Pools = tuple[Tensor | None, Tensor | None]
"""The pools of K and V that a layer reads, [M, d - d_u] each; None where a side has none."""

Rows = tuple[Tensor | None, Tensor | None]
"""Pool rows int32 of K and V that are known without a router; None where they are not."""

UNKNOWN: Rows = (None, None)


@dataclass(frozen=True)
class CacheEntries:
    """Cached events of one layer: index int32 [B, N] (None without a pool), user [B, N, d_u]."""

    k_index: Tensor | None
    v_index: Tensor | None
    k_user: Tensor
    v_user: Tensor

    def tensors(self, cache: CacheSpec) -> list[Tensor]:
        """The tensors of `cache`, in its order."""
        return [getattr(self, suffix) for suffix, _, _ in cache.tensors]

    @classmethod
    def of(cls, cache: CacheSpec, tensors: list[Tensor]) -> CacheEntries:
        """Entries from tensors in the order of `cache`."""
        named = {suffix: t for (suffix, _, _), t in zip(cache.tensors, tensors, strict=True)}
        return cls(named.get("k_index"), named.get("v_index"), named["k_user"], named["v_user"])

    def side(self, side: str) -> tuple[Tensor | None, Tensor]:
        """(index, user) of side "k" or "v"."""
        return (self.k_index, self.k_user) if side == "k" else (self.v_index, self.v_user)

    def then(self, later: CacheEntries) -> CacheEntries:
        """These events followed by `later`."""
        return self._map(lambda a, b: torch.cat([a, b], dim=1), later)

    def first(self, count: int) -> CacheEntries:
        """The first `count` events."""
        return self._map(lambda a, _: a[:, :count], self)

    def take(self, positions: Tensor) -> CacheEntries:
        """The events at positions int64 [N']."""
        return self._map(lambda a, _: a.index_select(1, positions), self)

    def _map(self, change: Callable[[Tensor, Tensor], Tensor], other: CacheEntries) -> CacheEntries:
        def index(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else change(a, b)

        return CacheEntries(
            index(self.k_index, other.k_index),
            index(self.v_index, other.v_index),
            change(self.k_user, other.k_user),
            change(self.v_user, other.v_user),
        )


class Router(nn.Module):
    """The pool row of an event: argmax of a linear map with M rows, lowest row at a tie.

    The rows are padded with copies of the last one until they fall into equal groups
    (`ops.first_argmax`); a copy loses any tie against its original.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.rows = weight.shape[0]
        self.groups = math.isqrt(self.rows)
        padded = [*range(self.rows), *[self.rows - 1] * (-self.rows % self.groups)]
        self.logits = Projection(weight[padded], None if bias is None else bias[padded])

    def forward(self, x: Tensor) -> Tensor:
        """Events [B, N, d_e] -> rows int32 [B, N]."""
        return ops.first_argmax(self.logits(x), self.groups).clamp(max=self.rows - 1)


class CollectiveSide(nn.Module, Reducible):
    """Keys or values of one layer."""

    def __init__(
        self, side: str, spec: AttentionSpec, prefix: str, state: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.use_silu = spec.use_silu
        self.shared = spec.shared(side)
        self.user = Projection(state[f"{prefix}.weight"], state.get(f"{prefix}.bias"))
        if self.shared:
            self.router = Router(
                state[f"{prefix}.router.weight"], state.get(f"{prefix}.router.bias")
            )
            self.pool = frozen(self._activate(state[f"{prefix}.pool"]))

    def reduce(self, dtype: torch.dtype) -> None:
        """Keep the pool in `dtype`; what is cached stays as it is."""
        if self.shared:
            self.pool = reduced(self.pool, dtype)

    def encode(self, x: Tensor, rows: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """Events [B, N, d_e] -> (index int32 [B, N] or None, user part [B, N, d_u]).

        `rows`: what the router would find, where that is known.
        """
        user = self._activate(self.user(x))
        if not self.shared:
            return None, user
        return self.router(x) if rows is None else rows, self._activate(user)

    def _activate(self, x: Tensor) -> Tensor:
        return F.silu(x) if self.use_silu else x


def assembled(
    pool: Tensor | None, index: Tensor | None, user: Tensor, dtype: torch.dtype
) -> Tensor:
    """Cached parts -> keys or values [B, N, d] of `dtype`; `user` alone where there is no pool."""
    if pool is None or index is None:
        return user.to(dtype)
    vectors: Tensor = _gather_concat(pool, index, user.to(dtype))
    return vectors


class CollectiveAttention(nn.Module):
    """One layer of CollectiveKV target attention; W_o is left to what follows."""

    def __init__(self, spec: AttentionSpec, layer: int, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        prefix = f"attention.{layer}"
        self.spec = spec
        self.scale = ops.attention_scale(spec.d, spec.num_heads, spec.use_scale)
        self.query = ReducibleProjection(state[f"{prefix}.q.weight"])
        self.k = CollectiveSide("k", spec, f"{prefix}.k", state)
        self.v = CollectiveSide("v", spec, f"{prefix}.v", state)

    def encode(self, x: Tensor, rows: Rows = UNKNOWN) -> CacheEntries:
        """What is cached for events [B, N, d_e]; `rows` [B, N] where they are known."""
        (k_index, k_user), (v_index, v_user) = self.k.encode(x, rows[0]), self.v.encode(x, rows[1])
        return CacheEntries(k_index, v_index, k_user, v_user)

    @property
    def pooled(self) -> bool:
        """Whether keys and values both come from a pool, so that one operator does it all."""
        return self.k.shared and self.v.shared

    @property
    def pools(self) -> Pools:
        """Its own pools [M, d - d_u] of K and V, None where there is none."""
        key, value = (side.pool if side.shared else None for side in (self.k, self.v))
        return key, value

    def attend(self, target: Tensor, entries: CacheEntries, mask: Tensor, pools: Pools) -> Tensor:
        """Targets [B, C, d_e] over cached events with mask bool [B, N]: [B, C, d] before W_o."""
        query = self.query(target)
        query = F.silu(query) if self.spec.use_silu else query
        heads, scale = self.spec.num_heads, self.scale
        if self.pooled:
            rows = self._pool_inputs(entries, pools, query.dtype)
            attended: Tensor = _attend(query, *rows, mask.int(), heads, scale)
            return attended
        key, value = self._keys_values(entries, pools, query.dtype)
        logits = ops.masked_logits(query * scale, key, mask, heads)
        return ops.weighted_values(logits, value, heads)

    def attend_pointwise(
        self,
        query: Tensor,
        entries: CacheEntries,
        bias: Tensor,
        visible: Tensor,
        count: Tensor,
        pools: Pools,
    ) -> Tensor:
        """HSTU's form: query [B, C, d], bias and int32 visible [B, C, N], count [B, C]."""
        heads, scale = self.spec.num_heads, self.scale
        if self.pooled:
            rows = self._pool_inputs(entries, pools, query.dtype)
            attended: Tensor = _attend_pointwise(
                query, *rows, bias.to(query.dtype), visible, count, heads, scale
            )
            return attended
        key, value = self._keys_values(entries, pools, query.dtype)
        logits = ops.attention_logits(query * scale, key, heads)
        return ops.pointwise_values(logits, value, bias, visible != 0, count, heads)

    @staticmethod
    def _pool_inputs(entries: CacheEntries, pools: Pools, dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs: list[Tensor] = []
        for side, pool in zip(SIDES, pools, strict=True):
            index, user = entries.side(side)
            assert pool is not None
            assert index is not None
            inputs += [pool, index, user.to(dtype)]
        return tuple(inputs)

    @staticmethod
    def _keys_values(
        entries: CacheEntries, pools: Pools, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        key, value = (
            assembled(pool, *entries.side(side), dtype)
            for side, pool in zip(SIDES, pools, strict=True)
        )
        return key, value

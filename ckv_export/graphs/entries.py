"""Between the flat tensors of a graph and what models compute with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ckv_export.contract import CacheSpec, GraphSpec
from ckv_export.model.collective import CacheEntries


def by_name(io: GraphSpec, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """The inputs of a graph under their names."""
    return {t.name: value for t, value in zip(io.inputs, inputs, strict=True)}


def stacked(cache: CacheSpec, layers: Sequence[CacheEntries]) -> tuple[Tensor, ...]:
    """Entries [B, N, ...] of each layer as the cache's tensors [B, L, N, ...]."""
    tensors = [entries.tensors(cache) for entries in layers]
    return tuple(torch.stack(list(same), dim=1) for same in zip(*tensors, strict=True))

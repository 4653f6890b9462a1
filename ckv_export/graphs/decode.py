"""Decode: join the newest events to a cached history, score candidates, return what to cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ckv_export.contract import CacheSpec, decode_io
from ckv_export.model.collective import CacheEntries
from ckv_export.model.target_attention import TargetAttentionModel, window_positions


class DecodeGraph(nn.Module):
    """Module with the inputs and outputs of `contract.decode_io`, in order."""

    def __init__(self, model: TargetAttentionModel) -> None:
        super().__init__()
        self.model = model
        self.io = decode_io(model.spec)
        self.cache = CacheSpec.of(model.spec)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Tensors of `io.inputs` -> ``score`` [B, C] and ``append_*`` [B, L, T, ...]."""
        spec, model = self.model.spec, self.model
        given = iter(inputs)
        cached = CacheEntries.of(
            self.cache, [t.squeeze(1) for t in _take(given, len(self.cache.tensors))]
        )
        history_mask = next(given)
        history = model.embed_item(_take(given, len(spec.item_features)))
        appended = model.embed_item(_take(given, len(spec.item_features)))
        mask = torch.cat([history_mask, next(given)], dim=1)
        target = model.embed_item(_take(given, len(spec.item_features)))

        new = model.encode(appended)
        entries = cached.then(new)
        kept, kept_mask = window_positions(spec, entries.k_user.shape[1], mask.shape[1])
        score = model.score(
            entries.take(kept),
            mask.index_select(1, kept_mask),
            torch.cat([history, appended], dim=1),
            mask,
            target,
            list(given),
        )
        return (score, *(t.unsqueeze(1) for t in new.tensors(self.cache)))


def _take(tensors: Iterator[Tensor], count: int) -> list[Tensor]:
    return [next(tensors) for _ in range(count)]

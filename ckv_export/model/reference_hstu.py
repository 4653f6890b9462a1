"""The truth about HSTU: every layer over the whole sequence again, one event at a time.

After arXiv 2402.17152, with CollectiveKV's keys and values; `hstu.py` states the formulas.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ckv_export.model.reference import Entries, Features, Reference

NORM_EPS = 1e-6


class HstuReference(Reference):
    """HSTU evaluated from its state dict; see `Reference` for what goes in."""

    def cache(self, history: Features, mask: Tensor) -> list[Entries]:
        """What each layer caches for a history [B, S]."""
        events = self.embed(self.spec.embedded_item_features, history)
        return self._layers(events, mask, self._times(history))[1]

    def score(
        self, history: Features, mask: Tensor, candidates: Features, user: Features
    ) -> Tensor:
        """Scores [B, C]: each candidate alone is put behind the history."""
        columns = []
        for c in range(next(iter(candidates.values())).shape[1]):
            target = {name: value[:, c : c + 1] for name, value in candidates.items()}
            columns.append(self._score_one(history, mask, target, user))
        return torch.stack(columns, dim=1)

    def _score_one(
        self, history: Features, mask: Tensor, target: Features, user: Features
    ) -> Tensor:
        sequence = {name: torch.cat([history[name], target[name]], dim=1) for name in target}
        events = self.embed(self.spec.embedded_item_features, sequence)
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        state = self._layers(events, mask, self._times(sequence))[0]
        parts = [events[:, -1], state[:, -1]]
        if self.spec.user_features:
            parts.insert(0, self.embed(self.spec.user_features, user))
        return self.dnn(torch.cat(parts, dim=-1))

    def _times(self, sequence: Features) -> Tensor | None:
        stamp = self.spec.timestamp
        return None if stamp is None else sequence[stamp.name].long()

    def _layers(
        self, events: Tensor, mask: Tensor, times: Tensor | None
    ) -> tuple[Tensor, list[Entries]]:
        x = self.linear(events, "input")
        entries = []
        for layer in range(self.spec.num_layers):
            z = self._norm(x, f"attention.{layer}.norm")
            entries.append(self.entries(z, layer))
            x = x + self._update(z, layer, mask, times)
        return x, entries

    def _norm(self, x: Tensor, prefix: str) -> Tensor:
        weight, bias = self.state[f"{prefix}.weight"], self.state[f"{prefix}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, NORM_EPS)

    def _update(self, z: Tensor, layer: int, mask: Tensor, times: Tensor | None) -> Tensor:
        prefix = f"attention.{layer}"
        query = F.silu(self.linear(z, f"{prefix}.q"))
        gate = F.silu(self.linear(z, f"{prefix}.u"))
        key, value = (self.vectors(z, layer, side) for side in ("k", "v"))
        seen = [self._attend(t, query, key, value, layer, mask, times) for t in range(z.shape[1])]
        attended = torch.stack(seen, dim=1) if seen else torch.zeros_like(query)
        return self.linear(self._norm(attended, f"{prefix}.output_norm") * gate, f"{prefix}.o")

    def _attend(
        self,
        t: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        mask: Tensor,
        times: Tensor | None,
    ) -> Tensor:
        """Event t's weighted sum of the events up to t: [B, d]."""
        heads = self.spec.attention.num_heads
        width = query.shape[-1] // heads
        bias = self._bias(t, layer, mask, times)
        real = mask[:, : t + 1]
        outputs = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            logits = (key[:, : t + 1, part] * query[:, t : t + 1, part]).sum(-1)
            if self.spec.attention.use_scale:
                logits = logits / math.sqrt(width)
            weights = F.silu(logits + bias) * real
            outputs.append((weights.unsqueeze(-1) * value[:, : t + 1, part]).sum(1))
        return torch.cat(outputs, dim=-1) / real.sum(1, keepdim=True).clamp(min=1)

    def _bias(self, t: int, layer: int, mask: Tensor, times: Tensor | None) -> Tensor:
        """Relative bias of the events up to t: [B, t + 1]."""
        position = mask.long().cumsum(1)
        table = self.state[f"attention.{layer}.position_bias"]
        distance = position[:, t : t + 1] - position[:, : t + 1]
        bias = table[distance.clamp(max=len(table) - 1)]
        if times is None:
            return bias
        table = self.state[f"attention.{layer}.time_bias"]
        elapsed = times[:, t : t + 1] - times[:, : t + 1]
        buckets = [[max(int(s), 1).bit_length() - 1 for s in row] for row in elapsed]
        return bias + table[torch.tensor(buckets).clamp(max=len(table) - 1)]

"""HSTU with all events and candidates at once, and in training form.

The reference goes from event to event and from candidate to candidate, which is the plainest way
to say it and takes minutes to train. Only those loops are replaced here; a test holds the two to
the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ckv_export.contract import ModelSpec
from ckv_export.model.ops import attention_logits, attention_scale, merge_heads, split_heads
from ckv_export.model.reference import Entries, Features, Reference
from ckv_export.model.reference_hstu import HstuReference
from ckv_export.training.model import TrainingModel


class HstuAtOnce(HstuReference):
    """`HstuReference`, each layer computed once for all events and candidates."""

    _shown = 0  # candidates at the end of the sequence that the layers are looking at

    def cache(self, history: Features, mask: Tensor) -> list[Entries]:
        """As `HstuReference.cache`."""
        self._shown = 0
        return super().cache(history, mask)

    def score(
        self, history: Features, mask: Tensor, candidates: Features, user: Features
    ) -> Tensor:
        """As `HstuReference.score`; the candidates stand side by side behind the history."""
        self._shown = next(iter(candidates.values())).shape[1]
        sequence = {n: torch.cat([history[n], shown], dim=1) for n, shown in candidates.items()}
        events = self.embed(self.spec.embedded_item_features, sequence)
        mask = F.pad(mask, (0, self._shown), value=True)
        state = self._layers(events, mask, self._times(sequence))[0]
        parts = [events[:, -self._shown :], state[:, -self._shown :]]
        if self.spec.user_features:
            embedded = self.embed(self.spec.user_features, user)
            parts.insert(0, embedded.unsqueeze(1).expand(-1, self._shown, -1))
        return self.dnn(torch.cat(parts, dim=-1).flatten(0, 1)).unflatten(0, (-1, self._shown))

    def _update(self, z: Tensor, layer: int, mask: Tensor, times: Tensor | None) -> Tensor:
        prefix = f"attention.{layer}"
        query = F.silu(self.linear(z, f"{prefix}.q"))
        gate = F.silu(self.linear(z, f"{prefix}.u"))
        key, value = (self.vectors(z, layer, side) for side in ("k", "v"))
        heads, scaled = self.spec.attention.num_heads, self.spec.attention.use_scale
        query = query * attention_scale(query.shape[-1], heads, scaled)
        logits = attention_logits(query, key, heads)
        weights = F.silu(logits + self._biases(layer, mask, times).unsqueeze(1))
        attended = merge_heads((weights * self._visible(mask)) @ split_heads(value, heads))
        attended = attended / self._count(mask).clamp(min=1).unsqueeze(-1)
        return self.linear(self._norm(attended, f"{prefix}.output_norm") * gate, f"{prefix}.o")

    def _biases(self, layer: int, mask: Tensor, times: Tensor | None) -> Tensor:
        """Relative bias of event s for event t: [B, t, s]; where t can't see s it means nothing."""
        prefix = f"attention.{layer}"
        bias = _look_up(self.state[f"{prefix}.position_bias"], _apart(self._count(mask)))
        if times is None:
            return bias
        # frexp gives a mantissa in [1/2, 1), so floor(log2 n) is the exponent less 1; exact in fp64
        bucket = torch.frexp(_apart(times).clamp(min=1).double()).exponent - 1
        return bias + _look_up(self.state[f"{prefix}.time_bias"], bucket)

    def _count(self, mask: Tensor) -> Tensor:
        """Real events up to each one [B, n]; every candidate is the first after the history."""
        before = mask.sum(1, keepdim=True) - self._shown
        return mask.cumsum(1).minimum(before + 1)

    def _visible(self, mask: Tensor) -> Tensor:
        """Whether t sees s: itself, or a real event of the history before it; bool [B, 1, t, s]."""
        order = torch.arange(mask.shape[1])
        earlier = (order < order[:, None]) & (order < len(order) - self._shown)
        return mask[:, None, None] & (earlier | (order == order[:, None]))


class TrainingHstu(TrainingModel, HstuAtOnce):
    """HSTU in training form."""


def training_model(spec: ModelSpec, state: Mapping[str, Tensor]) -> TrainingModel:
    """The model of `spec` in training form, starting from a copy of `state`."""
    return TrainingHstu(spec, state) if spec.kind == "hstu" else TrainingModel(spec, state)


def trained_model(spec: ModelSpec, state: Mapping[str, Tensor]) -> Reference:
    """The model of `spec` in inference form."""
    return HstuAtOnce(spec, state) if spec.kind == "hstu" else Reference(spec, state)


def _apart(x: Tensor) -> Tensor:
    """x_t - x_s of x [B, n]: [B, t, s]."""
    return x[:, :, None] - x[:, None, :]


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """The entry of table [n] at each index, the last one for any beyond it."""
    return F.embedding(index.clamp(0, len(table) - 1), table.unsqueeze(-1)).squeeze(-1)

"""HSTU with all events of a history at once, and in training form.

The reference goes from event to event, which is the plainest way to say it and takes minutes to
train. Only that loop is replaced here; a test holds the two to the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ckv_export.contract import ModelSpec
from ckv_export.model.ops import attention_logits, merge_heads, split_heads
from ckv_export.model.reference import Reference
from ckv_export.model.reference_hstu import HstuReference
from ckv_export.training.model import TrainingModel


class HstuAtOnce(HstuReference):
    """`HstuReference`, each layer computed for all events together."""

    def _update(self, z: Tensor, layer: int, mask: Tensor, times: Tensor | None) -> Tensor:
        prefix = f"attention.{layer}"
        query = F.silu(self._linear(z, f"{prefix}.q"))
        gate = F.silu(self._linear(z, f"{prefix}.u"))
        key, value = (self.vectors(z, layer, side) for side in ("k", "v"))
        heads, scaled = self.spec.attention.num_heads, self.spec.attention.use_scale
        logits = attention_logits(query, key, heads, scaled)
        weights = F.silu(logits + self._biases(layer, mask, times).unsqueeze(1))
        attended = merge_heads((weights * _visible(mask)) @ split_heads(value, heads))
        attended = attended / mask.cumsum(1).clamp(min=1).unsqueeze(-1)
        return self._linear(self._norm(attended, f"{prefix}.output_norm") * gate, f"{prefix}.o")

    def _biases(self, layer: int, mask: Tensor, times: Tensor | None) -> Tensor:
        """Relative bias of event s for event t: [B, t, s]; at s > t it means nothing."""
        prefix = f"attention.{layer}"
        bias = _look_up(self.state[f"{prefix}.position_bias"], _apart(mask.long().cumsum(1)))
        if times is None:
            return bias
        # frexp gives a mantissa in [1/2, 1), so floor(log2 n) is the exponent less 1; exact in fp64
        bucket = torch.frexp(_apart(times).clamp(min=1).double()).exponent - 1
        return bias + _look_up(self.state[f"{prefix}.time_bias"], bucket)


class TrainingHstu(TrainingModel, HstuAtOnce):
    """HSTU in training form."""


def training_model(spec: ModelSpec, state: Mapping[str, Tensor]) -> TrainingModel:
    """The model of `spec` in training form, starting from a copy of `state`."""
    return TrainingHstu(spec, state) if spec.kind == "hstu" else TrainingModel(spec, state)


def trained_model(spec: ModelSpec, state: Mapping[str, Tensor]) -> Reference:
    """The model of `spec` in inference form."""
    return HstuAtOnce(spec, state) if spec.kind == "hstu" else Reference(spec, state)


def _visible(mask: Tensor) -> Tensor:
    """Whether event t sees event s, real and not after it: bool [B, 1, t, s]."""
    length = mask.shape[1]
    return mask[:, None, None] & torch.ones(length, length, dtype=torch.bool).tril()


def _apart(x: Tensor) -> Tensor:
    """x_t - x_s of x [B, n]: [B, t, s]."""
    return x[:, :, None] - x[:, None, :]


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """The entry of table [n] at each index, the last one for any beyond it."""
    return F.embedding(index.clamp(0, len(table) - 1), table.unsqueeze(-1)).squeeze(-1)

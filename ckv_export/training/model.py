"""A model in training form: the reference's own formulas, with what only training has.

The collective part is gated, ``c = P[i] sigmoid(max logit)``, so that a gradient reaches the
router through the row it chose; normalisation uses the statistics of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ckv_export.contract import ModelSpec, require
from ckv_export.model.reference import Features, Reference
from ckv_export.training.clicks import Clicks
from ckv_export.training.initial import is_trained
from ckv_export.training.losses import balance_loss, peak_loss

MOMENTUM = 0.1  # as torch.nn.BatchNorm1d


@dataclass(frozen=True)
class Losses:
    """Of one batch, each a scalar: clicks, router peaks, load balance and SIM's search."""

    click: Tensor
    peak: Tensor
    balance: Tensor
    search: Tensor

    def total(self, alpha: float, beta: float) -> Tensor:
        """What is minimised: ``click + search + alpha peak + beta balance``."""
        return self.click + self.search + alpha * self.peak + beta * self.balance


class TrainingModel(Reference):
    """`Reference` whose state learns; of another reference too, as a base before that one.

    `state` is copied. The router losses are means over the pools (K and V, layers) and over real
    events. `Reference` puts one candidate column at a time through the scoring network, so clicked
    ones must not all stand in one column: its statistics would give the label away.
    """

    state: dict[str, Tensor]

    def __init__(self, spec: ModelSpec, state: Mapping[str, Tensor]) -> None:
        require(spec.dnn.sigmoid, "training needs a model of clicks: dnn.sigmoid must be true")
        copies = {n: t.detach().clone().requires_grad_(is_trained(n)) for n, t in state.items()}
        super().__init__(spec, copies)
        self._mask = torch.zeros(0, 0, dtype=torch.bool)
        self._router_losses: list[Tensor] = []

    def parameters(self) -> list[Tensor]:
        """The tensors that an optimizer moves."""
        return [tensor for tensor in self.state.values() if tensor.requires_grad]

    def trained_state(self) -> dict[str, Tensor]:
        """A copy of the state as it is now, for inference or a checkpoint."""
        return {name: tensor.detach().clone() for name, tensor in self.state.items()}

    def losses(self, clicks: Clicks) -> Losses:
        """Every loss on one batch of two or more histories; running statistics move."""
        score = self.score(clicks.history, clicks.mask, clicks.candidates, clicks.user)
        peak, balance = torch.stack(self._router_losses).mean(0)
        search = self._search_loss(clicks) if self.spec.kind == "sim" else torch.zeros(())
        return Losses(F.binary_cross_entropy(score, clicks.label), peak, balance, search)

    def score(
        self, history: Features, mask: Tensor, candidates: Features, user: Features
    ) -> Tensor:
        """As `Reference.score`; the router's losses are collected on the way."""
        self._mask, self._router_losses = mask, []
        return super().score(history, mask, candidates, user)

    def _collective_part(self, x: Tensor, layer: int, side: str) -> Tensor:
        logits = self._router_logits(x, layer, side)
        real = self._real(x.shape[1])
        self._router_losses.append(
            torch.stack([peak_loss(logits, real), balance_loss(logits, real)])
        )
        peak, index = logits.max(-1)
        rows = F.embedding(index, self.state[f"attention.{layer}.{side}.pool"])
        return rows * torch.sigmoid(peak).unsqueeze(-1)

    def _real(self, count: int) -> Tensor:
        """The mask [B, count] of routed events: the last of the history, or all and candidates."""
        length = self._mask.shape[1]
        return F.pad(self._mask[:, max(length - count, 0) :], (0, max(count - length, 0)), value=1)

    def _standardise(self, x: Tensor, prefix: str, eps: float) -> Tensor:
        """Normalise x [B, n] by its own mean and biased variance; move the running ones."""
        mean, var = self.state[f"{prefix}.mean"], self.state[f"{prefix}.var"]
        return F.batch_norm(x, mean, var, training=True, momentum=MOMENTUM, eps=eps)

    def _search_loss(self, clicks: Clicks) -> Tensor:
        """Teach SIM's search, whose top-k no gradient passes.

        SIM trains its soft search on clicks through ``sum_t g_t e_t`` and a small tower (arXiv
        2006.05639, section 3.1). Here the mean relevance of the real events is itself the logit:
        ``mean_t g_t = (W_a e_target) . (W_b mean_t e_t)``, and no tower is needed.
        """
        events = self.embed(self.spec.embedded_item_features, clicks.history)
        targets = self.embed(self.spec.embedded_item_features, clicks.candidates)
        count = clicks.mask.sum(1, keepdim=True).clamp(min=1)
        means = (events * clicks.mask.unsqueeze(-1)).sum(1) / count
        asked = self.linear(targets, "long.gsu_target")
        found = self.linear(means, "long.gsu_event").unsqueeze(1)
        return F.binary_cross_entropy_with_logits((asked * found).sum(-1), clicks.label)

"""The truth: every model unsplit, slow, and written straight from the formulas.

Nothing here is shared with the modules that are exported. There is no cache, no fold
and no graph-friendly selection: a whole history goes in, one candidate after another is
scored. The method is arXiv 2601.19178; `reference_hstu` holds HSTU, after arXiv 2402.17152.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ckv_export.contract import FeatureSpec, ModelSpec
from ckv_export.model.activations import activation_module

State = Mapping[str, Tensor]
Features = Mapping[str, Tensor]

MASKED = -1e9
BATCH_NORM_EPS = 1e-5
DICE_EPS = 1e-9
NORM_EPS = 1e-12


@dataclass(frozen=True)
class Entries:
    """What one layer caches for events, per side: row, distance to the runner-up row, user part.

    index int64 [B, S] and margin [B, S] are None on a side without a pool; user [B, S, d_u]. The
    margin of an event that ties all rows, as one of zeros does in any arithmetic, is infinite:
    no rounding gives it another.
    """

    index: Mapping[str, Tensor | None]
    margin: Mapping[str, Tensor | None]
    user: Mapping[str, Tensor]


class Reference:
    """A model evaluated from its state dict.

    `state` holds the native tensors, float32 or float64; results have that dtype. Feature
    mappings go from feature name to [B, S, ...] (events), [B, C, ...] (candidates) or
    [B, ...] (user). Masks are bool [B, S], True for a real event.
    """

    def __init__(self, spec: ModelSpec, state: State) -> None:
        self.spec = spec
        self.state = state

    # -- embeddings -----------------------------------------------------------------

    def embed(self, features: tuple[FeatureSpec, ...], values: Features) -> Tensor:
        """Concatenate the features' embeddings: [..., sum of widths]."""
        return torch.cat([self._embed_one(f, values[f.name]) for f in features], dim=-1)

    def _embed_one(self, feature: FeatureSpec, value: Tensor) -> Tensor:
        owner = feature.shares or feature.name
        if feature.kind == "categorical":
            return F.embedding(value.long(), self.state[f"embedding.{owner}.table"])
        if feature.kind == "sequence":
            return self._pool(
                F.embedding(value.long(), self.state[f"embedding.{owner}.table"]), feature
            )
        value = value.to(self._dtype())
        if feature.kind == "numeric":
            return value.unsqueeze(-1) * self.state[f"embedding.{owner}.weight"].squeeze(-1)
        return value @ self.state[f"embedding.{owner}.weight"].T if feature.projected else value

    def _pool(self, embedded: Tensor, feature: FeatureSpec) -> Tensor:
        total = embedded.sum(-2)
        if feature.pooling == "sum":
            return total
        return total / ((embedded.sum(-1) != 0).sum(-1, keepdim=True) + NORM_EPS)

    def _dtype(self) -> torch.dtype:
        return next(iter(self.state.values())).dtype

    # -- CollectiveKV attention -----------------------------------------------------

    def cache(self, history: Features, mask: Tensor) -> list[Entries]:
        """What each layer caches for a history [B, S]: here one, and the mask is no matter."""
        return [self.entries(self.embed(self.spec.embedded_item_features, history), 0)]

    def entries(self, x: Tensor, layer: int) -> Entries:
        """Router rows and user parts of events x [B, S, d_x], as a cache stores them."""
        index: dict[str, Tensor | None] = {}
        margin: dict[str, Tensor | None] = {}
        user: dict[str, Tensor] = {}
        for side in ("k", "v"):
            index[side], margin[side] = self._route(x, layer, side)
            user[side] = self.activate(self._user_part(x, layer, side))
        return Entries(index, margin, user)

    def _route(self, x: Tensor, layer: int, side: str) -> tuple[Tensor | None, Tensor | None]:
        if not self.spec.attention.shared(side):
            return None, None
        logits = self._router_logits(x, layer, side)
        # numpy's argmax is the one that promises the first of several largest.
        index = torch.from_numpy(np.argmax(logits.detach().numpy(), axis=-1))
        best = logits.amax(-1)
        margin = best - logits.topk(min(2, logits.shape[-1]), dim=-1).values[..., -1]
        return index, margin.masked_fill(logits.amin(-1) == best, float("inf"))

    def _router_logits(self, x: Tensor, layer: int, side: str) -> Tensor:
        prefix = f"attention.{layer}.{side}.router"
        return self.linear(x, prefix)

    def _user_part(self, x: Tensor, layer: int, side: str) -> Tensor:
        part = self.linear(x, f"attention.{layer}.{side}")
        return self.activate(part) if self.spec.attention.shared(side) else part

    def _collective_part(self, x: Tensor, layer: int, side: str) -> Tensor:
        index, _ = self._route(x, layer, side)
        assert index is not None
        return self.state[f"attention.{layer}.{side}.pool"][index]

    def vectors(self, x: Tensor, layer: int, side: str) -> Tensor:
        """The keys or values of events x [B, S, d_x]: [B, S, d], pool part first."""
        part = self._user_part(x, layer, side)
        if self.spec.attention.shared(side):
            part = torch.cat([self._collective_part(x, layer, side), part], dim=-1)
        return self.activate(part)

    def activate(self, x: Tensor) -> Tensor:
        """The silu of CollectiveKV's projections, where the model has it."""
        return F.silu(x) if self.spec.attention.use_silu else x

    def linear(self, x: Tensor, prefix: str) -> Tensor:
        """The Linear `prefix` of x [..., in]: [..., out]."""
        return F.linear(x, self.state[f"{prefix}.weight"], self.state.get(f"{prefix}.bias"))

    def short_branch(self, key: Tensor, value: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Target attention of target [B, d_e] over the short window: key, value [B, n, d]."""
        query = self.activate(self.linear(target, "attention.0.q"))
        heads, scaled = self.spec.attention.num_heads, self.spec.attention.use_scale
        return self.linear(attend(query, key, value, mask, heads, scaled), "attention.0.o")

    # -- scores ---------------------------------------------------------------------

    def score(
        self, history: Features, mask: Tensor, candidates: Features, user: Features
    ) -> Tensor:
        """Scores [B, C] of candidates after a history [B, S] (appended events included)."""
        events = self.embed(self.spec.embedded_item_features, history)
        targets = self.embed(self.spec.embedded_item_features, candidates)
        window, window_mask = short_window(self.spec, events, mask)
        key, value = (self.vectors(window, 0, side) for side in ("k", "v"))
        long_branch = LONG_BRANCHES[self.spec.kind]
        columns = []
        for target in targets.unbind(1):
            parts = {
                "target": target,
                "short": self.short_branch(key, value, window_mask, target),
                "long": long_branch(self, events, mask, target),
            }
            if self.spec.user_features:
                parts["user"] = self.embed(self.spec.user_features, user)
            order = DNN_ORDERS[self.spec.kind]
            columns.append(self.dnn(torch.cat([parts[n] for n in order if n in parts], dim=-1)))
        return torch.stack(columns, dim=1)

    def dnn(self, x: Tensor) -> Tensor:
        """The scoring network on x [B, n]: [B]."""
        layers = len(self.spec.dnn.hidden)
        for i in range(layers):
            x = self.linear(x, f"dnn.{i}")
            if self.spec.dnn.batch_norm:
                x = self._batch_norm(x, i)
            x = self.dnn_activation(x, i)
        x = self.linear(x, f"dnn.{layers}").squeeze(-1)
        return torch.sigmoid(x) if self.spec.dnn.sigmoid else x

    def _batch_norm(self, x: Tensor, layer: int) -> Tensor:
        prefix = f"dnn.{layer}.norm"
        weight, bias = self.state[f"{prefix}.weight"], self.state[f"{prefix}.bias"]
        return self._standardise(x, prefix, BATCH_NORM_EPS) * weight + bias

    def _standardise(self, x: Tensor, prefix: str, eps: float) -> Tensor:
        mean, var = self.state[f"{prefix}.mean"], self.state[f"{prefix}.var"]
        return (x - mean) / torch.sqrt(var + eps)

    def dnn_activation(self, x: Tensor, layer: int) -> Tensor:
        """The activation after hidden layer `layer`: [..., n] -> [..., n]."""
        name = self.spec.dnn.activations[layer]
        prefix = f"dnn.{layer}.activation"
        if name == "prelu":
            return F.prelu(x, self.state[f"{prefix}.weight"])
        if name == "dice":
            gate = torch.sigmoid(self._standardise(x, prefix, DICE_EPS))
            return gate * x + self.state[f"{prefix}.alpha"] * (1 - gate) * x
        activated: Tensor = activation_module(name)(x)
        return activated


def short_window(spec: ModelSpec, events: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The last W - 1 events and their mask; misaligned by one as the authors' code has it."""
    assert spec.window is not None
    window = spec.window
    length = events.shape[1]
    kept = min(length, window - 1)
    late = 1 if spec.mask_alignment == "fuxictr" and length >= window else 0
    return events[:, length - kept :], mask[:, length - kept - late : length - late]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int, scaled: bool
) -> Tensor:
    """Softmax attention of one query [B, d] per row over [B, S, d]: [B, d]."""
    if key.shape[1] == 0:
        return torch.zeros_like(query)
    width = query.shape[-1] // heads
    outputs = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        logits = (key[..., part] * query[:, None, part]).sum(-1)
        if scaled:
            logits = logits / width**0.5
        weights = torch.softmax(logits.masked_fill(~mask, MASKED), dim=-1)
        outputs.append((weights.unsqueeze(-1) * value[..., part]).sum(1))
    return torch.cat(outputs, dim=-1)


def largest(scores: Tensor, count: int) -> Tensor:
    """Positions [B, k] of the `count` largest of scores [B, S]; the lower position wins a tie."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return order[:, : min(count, scores.shape[-1])]


def pick(x: Tensor, positions: Tensor) -> Tensor:
    """Rows of x [B, S, ...] at positions [B, k]."""
    return torch.stack([row[place] for row, place in zip(x, positions, strict=True)])


def _attend_selected(
    model: Reference, events: Tensor, mask: Tensor, target: Tensor, positions: Tensor, scaled: bool
) -> Tensor:
    chosen, chosen_mask = pick(events, positions), pick(mask, positions)
    query = model.linear(target, "long.q")
    key, value = (model.linear(chosen, f"long.{side}") for side in ("k", "v"))
    attended = attend(query, key, value, chosen_mask, model.spec.attention.num_heads, scaled)
    return model.linear(attended, "long.o")


def _sim(model: Reference, events: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    asked = model.linear(target, "long.gsu_target")
    found = model.linear(events, "long.gsu_event")
    # Padding scores exactly 0 and so outranks events with a negative score.
    relevance = (found * asked.unsqueeze(1)).sum(-1) * mask
    positions = largest(relevance, int(model.spec.options["topk"]))
    return _attend_selected(model, events, mask, target, positions, scaled=True)


def _eta(model: Reference, events: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    rotations = model.state["long.rotations"]
    differing = ((events @ rotations > 0) != (target @ rotations > 0).unsqueeze(1)).sum(-1)
    distance = torch.where(mask, differing, rotations.shape[-1] + 1)
    positions = largest(-distance, int(model.spec.options["topk"]))
    scaled = bool(model.spec.options["use_scale"])
    return _attend_selected(model, events, mask, target, positions, scaled)


def _sdim(model: Reference, events: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    rotations = model.state["long.rotations"]
    total = torch.zeros_like(target)
    for h in range(rotations.shape[1]):
        powers = 2 ** torch.arange(rotations.shape[2])
        bucket = ((events @ rotations[:, h] > 0) * powers).sum(-1)
        wanted = ((target @ rotations[:, h] > 0) * powers).sum(-1, keepdim=True)
        found = (events * ((bucket == wanted) & mask).unsqueeze(-1)).sum(1)
        total = total + (F.normalize(found, dim=-1) if model.spec.options["l2_norm"] else found)
    return total / rotations.shape[1]


def _twin(model: Reference, events: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    query = model.linear(target, "long.q")
    key, value = model.linear(events, "long.k"), model.linear(events, "long.v")
    width = query.shape[-1] // model.spec.attention.num_heads
    outputs = []
    for start in range(0, query.shape[-1], width):
        part = slice(start, start + width)
        logits = (key[..., part] * query[:, None, part]).sum(-1) / width**0.5
        logits = logits.masked_fill(~mask, MASKED)
        positions = largest(logits, int(model.spec.options["topk"]))
        weights = torch.softmax(pick(logits, positions), dim=-1)
        outputs.append((weights.unsqueeze(-1) * pick(value[..., part], positions)).sum(1))
    return model.linear(torch.cat(outputs, dim=-1), "long.o")


LONG_BRANCHES: Mapping[str, Callable[[Reference, Tensor, Tensor, Tensor], Tensor]] = {
    "sim": _sim,
    "eta": _eta,
    "sdim": _sdim,
    "twin": _twin,
}
_USUAL_ORDER = ("user", "target", "short", "long")
DNN_ORDERS = dict.fromkeys(LONG_BRANCHES, _USUAL_ORDER) | {
    "sdim": ("user", "target", "long", "short")
}

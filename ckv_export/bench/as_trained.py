"""What a model's own PyTorch code does at decode: the rival that costs nobody any work.

The layers as they are trained, on the compact cache: candidates share a history, but nothing is
folded, every candidate gathers the events that its search selects and projects them to keys and
values, and the scoring network takes one concatenated input through its Linear and BatchNorm1d.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckv_export.contract import CacheSpec, decode_io
from ckv_export.model.reference import (
    BATCH_NORM_EPS,
    DNN_ORDERS,
    MASKED,
    Reference,
    short_window,
)


def _split(x: Tensor, heads: int) -> Tensor:
    """[..., N, d] -> [..., H, N, d / H]."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def _gathered(x: Tensor, at: Tensor) -> Tensor:
    """Of x [..., S, w] the rows at positions [..., C, k]: [..., C, k, w]."""
    wide = x.unsqueeze(-3).expand(*at.shape[:-1], *x.shape[-2:])
    return wide.gather(-2, at.unsqueeze(-1).expand(*at.shape, x.shape[-1]))


class TrainedDecode(nn.Module):
    """Decode of a target-attention model by its training code's layers, with `decode_io`'s tensors.

    Its top-k is torch's: where scores tie it may keep other events than the model's reference.
    """

    def __init__(self, reference: Reference) -> None:
        super().__init__()
        self.spec = reference.spec
        self.io = decode_io(self.spec)
        self.cache = CacheSpec.of(self.spec)
        self.state, self.linear = reference.state, reference.linear
        self._reference = reference

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Tensors of `io.inputs` -> ``score`` [B, C], ``append_*`` [B, 1, T, ...]."""
        given = {t.name: x for t, x in zip(self.io.inputs, inputs, strict=True)}
        appended = self._embedded(given, "append")
        events = torch.cat([self._embedded(given, "history"), appended], dim=1)
        mask = torch.cat([given["history_mask"], given["append_mask"]], dim=1)
        target = self._embedded(given, "candidate")
        new = self._encoded(appended)
        entries = {n: torch.cat([given[f"cache_{n}"][:, 0], x], dim=1) for n, x in new.items()}
        parts = {
            "target": target,
            "short": self._short(entries, mask, target),
            "long": _LONG[self.spec.kind](self, events, mask, target),
        }
        if self.spec.user_features:
            user = {f.name: given[f"user_{f.name}"] for f in self.spec.user_features}
            embedded = self._reference.embed(self.spec.user_features, user)
            parts["user"] = embedded.unsqueeze(1).expand(-1, target.shape[1], -1)
        joined = torch.cat([parts[n] for n in DNN_ORDERS[self.spec.kind] if n in parts], dim=-1)
        score = self._dnn(joined.flatten(0, 1)).unflatten(0, target.shape[:2])
        return (score, *(new[suffix].unsqueeze(1) for suffix, _, _ in self.cache.tensors))

    def attended(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaled: bool
    ) -> Tensor:
        """Multi-head attention of query [..., C, d] over [..., S, d] with mask [..., 1, S]."""
        heads = self.spec.attention.num_heads
        q, k, v = (_split(x, heads) for x in (query, key, value))
        logits = q @ k.transpose(-1, -2)
        logits = logits / q.shape[-1] ** 0.5 if scaled else logits
        weights = logits.masked_fill(~mask.unsqueeze(-3), MASKED).softmax(-1)
        return (weights @ v).transpose(-2, -3).flatten(-2)

    def selected(
        self, events: Tensor, mask: Tensor, target: Tensor, at: Tensor, scaled: bool
    ) -> Tensor:
        """Attention ``long`` of each target [B, C, d_e] over its events at [B, C, k]."""
        chosen = _gathered(events, at)
        shown = _gathered(mask.unsqueeze(-1), at).transpose(-1, -2)
        query = self.linear(target, "long.q").unsqueeze(-2)
        key, value = (self.linear(chosen, f"long.{side}") for side in ("k", "v"))
        return self.linear(self.attended(query, key, value, shown, scaled).squeeze(-2), "long.o")

    def _embedded(self, given: Mapping[str, Tensor], group: str) -> Tensor:
        features = self.spec.embedded_item_features
        return self._reference.embed(
            features, {f.name: given[f"{group}_{f.name}"] for f in features}
        )

    def _encoded(self, x: Tensor) -> dict[str, Tensor]:
        """What is cached of events [B, T, d_e]; a shared side's user part has passed silu twice."""
        new = {}
        for side in ("k", "v"):
            user = self._reference.activate(self.linear(x, f"attention.0.{side}"))
            if self.spec.attention.shared(side):
                user = self._reference.activate(user)
                logits = self.linear(x, f"attention.0.{side}.router")
                new[f"{side}_index"] = logits.argmax(-1).to(torch.int32)
            new[f"{side}_user"] = user
        return new

    def _vectors(self, entries: Mapping[str, Tensor], side: str) -> Tensor:
        user = entries[f"{side}_user"]
        if not self.spec.attention.shared(side):
            return user
        pool = self.state[f"attention.0.{side}.pool"]
        return torch.cat(
            [self._reference.activate(pool[entries[f"{side}_index"].long()]), user], dim=-1
        )

    def _short(self, entries: Mapping[str, Tensor], mask: Tensor, target: Tensor) -> Tensor:
        assert self.spec.window is not None
        shown = short_window(self.spec, mask, mask)[1].unsqueeze(1)
        kept = min(entries["k_user"].shape[1], self.spec.window - 1)
        late = {n: x[:, x.shape[1] - kept :] for n, x in entries.items()}
        query = self._reference.activate(self.linear(target, "attention.0.q"))
        key, value = (self._vectors(late, side) for side in ("k", "v"))
        scaled = self.spec.attention.use_scale
        return self.linear(self.attended(query, key, value, shown, scaled), "attention.0.o")

    def _dnn(self, x: Tensor) -> Tensor:
        """The scoring network on [n, width]: [n]."""
        dnn = self.spec.dnn
        for i in range(len(dnn.hidden)):
            x = self.linear(x, f"dnn.{i}")
            if dnn.batch_norm:
                mean, var, weight, bias = (self.state[f"dnn.{i}.norm.{n}"] for n in _NORM)
                x = F.batch_norm(x, mean, var, weight, bias, eps=BATCH_NORM_EPS)
            x = self._reference.dnn_activation(x, i)
        x = self.linear(x, f"dnn.{len(dnn.hidden)}").squeeze(-1)
        return x.sigmoid() if dnn.sigmoid else x


_NORM = ("mean", "var", "weight", "bias")


def _topk(scores: Tensor, count: int) -> Tensor:
    return scores.topk(min(count, scores.shape[-1]), dim=-1).indices


def _sim(model: TrainedDecode, events: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    asked = model.linear(target, "long.gsu_target")
    found = model.linear(events, "long.gsu_event")
    relevance = (asked @ found.transpose(1, 2)) * mask.unsqueeze(1)
    at = _topk(relevance, int(model.spec.options["topk"]))
    return model.selected(events, mask, target, at, scaled=True)


def _eta(model: TrainedDecode, events: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    codes = [x @ model.state["long.rotations"] > 0 for x in (target, events)]
    distance = (codes[0].unsqueeze(2) != codes[1].unsqueeze(1)).sum(-1)
    distance = distance.masked_fill(~mask.unsqueeze(1), codes[0].shape[-1] + 1)
    # Distances are small whole numbers that often tie: the lower position counts as nearer.
    length = events.shape[1]
    nearness = -(distance * length + torch.arange(length))
    at = _topk(nearness, int(model.spec.options["topk"]))
    return model.selected(events, mask, target, at, bool(model.spec.options["use_scale"]))


def _sdim(model: TrainedDecode, events: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    rotations = model.state["long.rotations"]
    powers = 2 ** torch.arange(rotations.shape[2])
    found = []
    for h in range(rotations.shape[1]):
        wanted, bucket = (((x @ rotations[:, h] > 0) * powers).sum(-1) for x in (target, events))
        shared = (wanted.unsqueeze(2) == bucket.unsqueeze(1)) & mask.unsqueeze(1)
        found.append(shared.to(events.dtype) @ events)
    sums = torch.stack(found)
    return (F.normalize(sums, dim=-1) if model.spec.options["l2_norm"] else sums).mean(0)


def _twin(model: TrainedDecode, events: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    heads = model.spec.attention.num_heads
    query = _split(model.linear(target, "long.q"), heads)
    key, value = (_split(model.linear(events, f"long.{side}"), heads) for side in ("k", "v"))
    logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    logits = logits.masked_fill(~mask[:, None, None], MASKED)
    at = _topk(logits, int(model.spec.options["topk"]))
    weights = logits.gather(-1, at).softmax(-1).unsqueeze(-2)
    attended = (weights @ _gathered(value, at)).squeeze(-2)
    return model.linear(attended.transpose(1, 2).flatten(2), "long.o")


_LONG: Mapping[str, Callable[[TrainedDecode, Tensor, Tensor, Tensor], Tensor]] = {
    "sim": _sim,
    "eta": _eta,
    "sdim": _sdim,
    "twin": _twin,
}
TRAINED_KINDS = tuple(_LONG)
"""HSTU is not among them: it is trained on whole histories, without a decode to compare with."""

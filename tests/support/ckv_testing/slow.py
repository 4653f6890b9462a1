"""The models once more, in numpy, float64 and loops: one user, one event, one head at a time.

Written from SPEC sections 1 and 2, sharing nothing with the package but the description of a
model. Slow and plain on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ckv_export.contract import FeatureSpec, ModelSpec
from ckv_export.runtimes.base import Arrays

Floats = NDArray[np.float64]


def silu(x: Floats) -> Floats:
    return x / (1.0 + np.exp(-x))


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(logit - top) for logit in logits]
    return [p / sum(powers) for p in powers]


def best(scores: list[float], count: int) -> list[int]:
    """Positions of the `count` largest; the lower position first where scores are equal."""
    return sorted(range(len(scores)), key=lambda t: (-scores[t], t))[:count]


class Slow:
    """A model in loops."""

    def __init__(self, spec: ModelSpec, state: Mapping[str, Tensor]) -> None:
        self.spec = spec
        self.state = {name: t.double().numpy() for name, t in state.items()}

    def linear(self, x: Floats, name: str) -> Floats:
        out = self.state[f"{name}.weight"] @ x
        bias = self.state.get(f"{name}.bias")
        return out if bias is None else out + bias

    def activate(self, x: Floats) -> Floats:
        return silu(x) if self.spec.attention.use_silu else x

    # -- embeddings

    def embed(self, features: tuple[FeatureSpec, ...], values: Mapping[str, Any]) -> Floats:
        return np.concatenate([self.embed_one(f, values[f.name]) for f in features])

    def embed_one(self, feature: FeatureSpec, value: Any) -> Floats:
        owner = f"embedding.{feature.shares or feature.name}"
        if feature.kind == "categorical":
            return self.state[f"{owner}.table"][int(value)]
        if feature.kind == "sequence":
            rows = [self.state[f"{owner}.table"][int(i)] for i in value]
            total = sum(rows, np.zeros(feature.width))
            counted = sum(1 for row in rows if row.sum() != 0)
            # Beside a float32 count the 1e-12 of the formula is nothing, and 0 / 1e-12 is 0.
            return total if feature.pooling == "sum" else total / max(counted, 1)
        if feature.kind == "numeric":
            return float(value) * self.state[f"{owner}.weight"][:, 0]
        value = np.asarray(value, np.float64)
        return self.state[f"{owner}.weight"] @ value if feature.projected else value

    # -- CollectiveKV

    def route(self, x: Floats, side: str) -> int:
        logits = self.linear(x, f"attention.0.{side}.router")
        row = 0
        for j in range(1, len(logits)):
            if logits[j] > logits[row]:
                row = j
        return row

    def user_part(self, x: Floats, side: str) -> Floats:
        """As it is cached: silu once on a plain side, twice beside a pool."""
        part = self.activate(self.linear(x, f"attention.0.{side}"))
        return self.activate(part) if self.spec.attention.shared(side) else part

    def vector(self, x: Floats, side: str) -> Floats:
        if not self.spec.attention.shared(side):
            return self.user_part(x, side)
        row = self.state[f"attention.0.{side}.pool"][self.route(x, side)]
        return np.concatenate([self.activate(row), self.user_part(x, side)])

    def heads(self) -> list[slice]:
        width = self.spec.attention.d // self.spec.attention.num_heads
        return [slice(h * width, (h + 1) * width) for h in range(self.spec.attention.num_heads)]

    def attend(
        self, query: Floats, keys: list[Floats], values: list[Floats], mask: Any, scaled: bool
    ) -> Floats:
        out = np.zeros(self.spec.attention.d)
        for head in self.heads():
            if not keys:
                continue
            scale = math.sqrt(head.stop - head.start) if scaled else 1.0
            logits = [
                float(query[head] @ key[head]) / scale if real else -1e9
                for key, real in zip(keys, mask, strict=True)
            ]
            for weight, value in zip(softmax(logits), values, strict=True):
                out[head] += weight * value[head]
        return out

    def window(self, events: list[Floats], mask: list[bool]) -> tuple[list[Floats], list[bool]]:
        size = self.spec.window
        assert size is not None
        first = max(len(events) - (size - 1), 0)
        shift = 1 if self.spec.mask_alignment == "fuxictr" and len(events) >= size else 0
        kept = range(first, len(events))
        return [events[t] for t in kept], [mask[t - shift] for t in kept]

    def short(
        self, keys: list[Floats], values: list[Floats], mask: list[bool], target: Floats
    ) -> Floats:
        """Attention of one target over the keys and values of a window."""
        query = self.activate(self.linear(target, "attention.0.q"))
        attended = self.attend(query, keys, values, mask, self.spec.attention.use_scale)
        return self.linear(attended, "attention.0.o")

    # -- long branches

    def long(self, events: list[Floats], mask: list[bool], target: Floats) -> Floats:
        return getattr(self, f"long_{self.spec.kind}")(events, mask, target)

    def selected(
        self, events: list[Floats], mask: list[bool], target: Floats, at: list[int], scaled: bool
    ) -> Floats:
        query = self.linear(target, "long.q")
        keys, values = ([self.linear(events[t], f"long.{s}") for t in at] for s in "kv")
        attended = self.attend(query, keys, values, [mask[t] for t in at], scaled)
        return self.linear(attended, "long.o")

    def long_sim(self, events: list[Floats], mask: list[bool], target: Floats) -> Floats:
        asked = self.linear(target, "long.gsu_target")
        scores = [
            float(asked @ self.linear(e, "long.gsu_event")) if real else 0.0
            for e, real in zip(events, mask, strict=True)
        ]
        return self.selected(events, mask, target, best(scores, self.spec.options["topk"]), True)

    def code(self, x: Floats, rotations: Floats) -> list[int]:
        return [int(sum(a * b for a, b in zip(x, r, strict=True)) > 0) for r in rotations.T]

    def long_eta(self, events: list[Floats], mask: list[bool], target: Floats) -> Floats:
        rotations = self.state["long.rotations"]
        wanted = self.code(target, rotations)
        distances = []
        for event, real in zip(events, mask, strict=True):
            code = self.code(event, rotations)
            differing = sum(a != b for a, b in zip(code, wanted, strict=True))
            distances.append(differing if real else len(wanted) + 1)
        at = best([-d for d in distances], self.spec.options["topk"])
        return self.selected(events, mask, target, at, bool(self.spec.options["use_scale"]))

    def bucket(self, x: Floats, rotations: Floats) -> int:
        return sum(bit << i for i, bit in enumerate(self.code(x, rotations)))

    def long_sdim(self, events: list[Floats], mask: list[bool], target: Floats) -> Floats:
        rotations = self.state["long.rotations"]
        out = np.zeros(self.spec.d_event)
        for h in range(rotations.shape[1]):
            wanted = self.bucket(target, rotations[:, h])
            found = np.zeros(self.spec.d_event)
            for event, real in zip(events, mask, strict=True):
                if real and self.bucket(event, rotations[:, h]) == wanted:
                    found += event
            length = math.sqrt(float(found @ found))
            out += found / length if self.spec.options["l2_norm"] and length > 0 else found
        return out / rotations.shape[1]

    def long_twin(self, events: list[Floats], mask: list[bool], target: Floats) -> Floats:
        query = self.linear(target, "long.q")
        keys, values = ([self.linear(e, f"long.{s}") for e in events] for s in "kv")
        out = np.zeros(self.spec.attention.d)
        for head in self.heads():
            logits = [
                float(query[head] @ key[head]) / math.sqrt(head.stop - head.start) if real else -1e9
                for key, real in zip(keys, mask, strict=True)
            ]
            at = best(logits, self.spec.options["topk"])
            weights = softmax([logits[t] for t in at]) if at else []
            for weight, t in zip(weights, at, strict=True):
                out[head] += weight * values[t][head]
        return self.linear(out, "long.o")

    # -- scores

    def dnn(self, x: Floats) -> float:
        spec = self.spec.dnn
        for i, name in enumerate(spec.activations):
            x = self.linear(x, f"dnn.{i}")
            if spec.batch_norm:
                norm = {n: self.state[f"dnn.{i}.norm.{n}"] for n in ("weight", "bias")}
                x = self.standardised(x, f"dnn.{i}.norm", 1e-5) * norm["weight"] + norm["bias"]
            x = self.dnn_activation(name, x, f"dnn.{i}.activation")
        logit = float(self.linear(x, f"dnn.{len(spec.hidden)}")[0])
        return 1.0 / (1.0 + math.exp(-logit)) if spec.sigmoid else logit

    def standardised(self, x: Floats, name: str, eps: float) -> Floats:
        return (x - self.state[f"{name}.mean"]) / np.sqrt(self.state[f"{name}.var"] + eps)

    def dnn_activation(self, name: str, x: Floats, prefix: str) -> Floats:
        if name == "relu":
            return np.maximum(x, 0)
        if name == "tanh":
            return np.tanh(x)
        if name == "gelu":
            return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
        if name == "prelu":
            return np.where(x > 0, x, self.state[f"{prefix}.weight"] * x)
        assert name == "dice"
        gate = 1.0 / (1.0 + np.exp(-self.standardised(x, prefix, 1e-9)))
        return gate * x + self.state[f"{prefix}.alpha"] * (1 - gate) * x

    def scores(
        self, events: list[Floats], mask: list[bool], targets: list[Floats], user: Floats
    ) -> list[float]:
        """Of one user's targets."""
        window, window_mask = self.window(events, mask)
        keys, values = ([self.vector(x, side) for x in window] for side in "kv")
        order = ["user", "target", "short", "long"]
        if self.spec.kind == "sdim":
            order = ["user", "target", "long", "short"]
        scores = []
        for target in targets:
            parts = {
                "user": user,
                "target": target,
                "short": self.short(keys, values, window_mask, target),
                "long": self.long(events, mask, target),
            }
            scores.append(self.dnn(np.concatenate([parts[name] for name in order])))
        return scores

    # -- whole cases, in the shapes of the graphs

    def outputs(self, inputs: Arrays) -> Arrays:
        """``score`` [B, C] and the entries ``k_index``, ... [B, S + T, ...] of a parity case."""
        shared = [side for side in "kv" if self.spec.attention.shared(side)]
        rows: dict[str, list[Any]] = {"score": []}
        for b in range(len(inputs["history_mask"])):
            events, mask = self.history(inputs, b)
            targets = self.embedded(inputs, "candidate", b)
            rows["score"].append(self.scores(events, mask, targets, self.user(inputs, b)))
            for side in shared:
                indices = np.array([self.route(x, side) for x in events], int)
                rows.setdefault(f"{side}_index", []).append(indices)
            for side in "kv":
                width = self.spec.attention.user_width(side)
                parts = [self.user_part(x, side) for x in events]
                rows.setdefault(f"{side}_user", []).append(np.reshape(parts, (len(parts), width)))
        return {name: np.array(values) for name, values in rows.items()}

    def user(self, inputs: Arrays, b: int) -> Floats:
        """The user features of user b."""
        features = self.spec.user_features
        values = {f.name: inputs[f"user_{f.name}"][b] for f in features}
        return self.embed(features, values) if features else np.zeros(0)

    def embedded(self, inputs: Arrays, prefix: str, b: int) -> list[Floats]:
        """User b's events or candidates of that prefix."""
        features = self.spec.item_features
        count = inputs[f"{prefix}_{features[0].name}"].shape[1]
        return [
            self.embed(features, {f.name: inputs[f"{prefix}_{f.name}"][b, t] for f in features})
            for t in range(count)
        ]

    def history(self, inputs: Arrays, b: int) -> tuple[list[Floats], list[bool]]:
        """Embeddings and mask of user b's events, appended ones last."""
        events = self.embedded(inputs, "history", b) + self.embedded(inputs, "append", b)
        masks = (inputs["history_mask"][b], inputs["append_mask"][b])
        return events, [bool(real) for real in np.concatenate(masks)]

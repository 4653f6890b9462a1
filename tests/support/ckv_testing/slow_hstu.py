"""HSTU by loops in float64, straight from the formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckv_export.contract import CacheSpec
from ckv_export.runtimes.base import Arrays
from ckv_testing.slow import Floats, Slow, silu


@dataclass(frozen=True)
class Event:
    embedding: Floats
    real: bool
    time: int | None


class SlowHstu(Slow):
    """ "HSTU in full" of SPEC section 2, one sequence, event, layer, pair and head at a time."""

    def norm(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean()
        rate = 1.0 / math.sqrt(float((centred**2).mean()) + 1e-6)
        return centred * rate * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def row(self, z: Floats, layer: int, side: str) -> int:
        logits = self.linear(z, f"attention.{layer}.{side}.router")
        return min(range(len(logits)), key=lambda j: (-logits[j], j))

    def part(self, z: Floats, layer: int, side: str) -> Floats:
        """The user part as it is cached."""
        part = self.activate(self.linear(z, f"attention.{layer}.{side}"))
        return self.activate(part) if self.spec.attention.shared(side) else part

    def whole(self, z: Floats, layer: int, side: str) -> Floats:
        if not self.spec.attention.shared(side):
            return self.part(z, layer, side)
        pool = self.state[f"attention.{layer}.{side}.pool"]
        row = self.activate(pool[self.row(z, layer, side)])
        return np.concatenate([row, self.part(z, layer, side)])

    def bias(self, layer: int, distance: int, later: Event, earlier: Event) -> float:
        positions = self.state[f"attention.{layer}.position_bias"]
        bias = float(positions[min(distance, len(positions) - 1)])
        if later.time is None or earlier.time is None:
            return bias
        times = self.state[f"attention.{layer}.time_bias"]
        bucket = 0
        while 2 ** (bucket + 1) <= later.time - earlier.time:
            bucket += 1
        return bias + float(times[min(bucket, len(times) - 1)])

    def layer(self, x: list[Floats], events: list[Event], layer: int) -> list[Floats]:
        name = f"attention.{layer}"
        z = [self.norm(one, f"{name}.norm") for one in x]
        keys = [self.whole(one, layer, "k") for one in z]
        values = [self.whole(one, layer, "v") for one in z]
        seen = np.cumsum([event.real for event in events])
        width = self.spec.attention.d // self.spec.attention.num_heads
        scale = math.sqrt(width) if self.spec.attention.use_scale else 1.0
        out = []
        for t in range(len(x)):
            gate = silu(self.linear(z[t], f"{name}.u"))
            query = silu(self.linear(z[t], f"{name}.q"))
            attended = np.zeros(self.spec.attention.d)
            for s in range(t + 1):
                if not events[s].real:
                    continue
                bias = self.bias(layer, int(seen[t] - seen[s]), events[t], events[s])
                for head in self.heads():
                    logit = float(query[head] @ keys[s][head]) / scale + bias
                    attended[head] += silu(np.float64(logit)) / seen[t] * values[s][head]
            gated = self.norm(attended, f"{name}.output_norm") * gate
            out.append(x[t] + self.linear(gated, f"{name}.o"))
        return out

    def states(self, events: list[Event]) -> list[list[Floats]]:
        """What goes into each layer, and what comes out of the last."""
        states = [[self.linear(event.embedding, "input") for event in events]]
        for layer in range(self.spec.num_layers):
            states.append(self.layer(states[-1], events, layer))
        return states

    def sequence(self, inputs: Arrays, groups: tuple[str, ...], b: int) -> list[Event]:
        features, stamp = self.spec.embedded_item_features, self.spec.timestamp
        events = []
        for group in groups:
            for t in range(inputs[f"{group}_{features[0].name}"].shape[1]):
                values = {f.name: inputs[f"{group}_{f.name}"][b, t] for f in features}
                real = group == "candidate" or bool(inputs[f"{group}_mask"][b, t])
                time = None if stamp is None else int(inputs[f"{group}_{stamp.name}"][b, t])
                events.append(Event(self.embed(features, values), real, time))
        return events

    def user_scores(self, inputs: Arrays, b: int) -> list[float]:
        """Each candidate by itself behind history and appended events."""
        events = self.sequence(inputs, ("history", "append"), b)
        scores = []
        for candidate in self.sequence(inputs, ("candidate",), b):
            state = self.states([*events, candidate])[-1][-1]
            parts = [self.user(inputs, b), candidate.embedding, state]
            scores.append(self.dnn(np.concatenate(parts)))
        return scores

    def outputs(self, inputs: Arrays) -> Arrays:
        """``score`` [B, C]; ``k_index`` [B, L, S + T], ``k_user`` [B, L, S + T, d_u], ..."""
        rows: dict[str, list[Any]] = {"score": []}
        for b in range(len(inputs["history_mask"])):
            rows["score"].append(self.user_scores(inputs, b))
            states = self.states(self.sequence(inputs, ("history", "append"), b))
            for suffix, _, width in CacheSpec.of(self.spec).tensors:
                compute = self.row if width is None else self.part
                entries = [
                    [compute(self.norm(x, f"attention.{i}.norm"), i, suffix[0]) for x in layer]
                    for i, layer in enumerate(states[:-1])
                ]
                inner = () if width is None else (width,)
                shape = (self.spec.num_layers, len(states[0]), *inner)
                rows.setdefault(suffix, []).append(np.reshape(entries, shape))
        return {name: np.array(values) for name, values in rows.items()}

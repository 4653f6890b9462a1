"""HSTU (Zhai et al. 2024, arXiv 2402.17152) with CollectiveKV in every layer.

``x_0 = W_in e``. In each layer ``z = norm(x)``; ``u, q = silu(W_u z), silu(W_q z)``; k and v from z
as CollectiveKV makes them. Event t attends to s <= t without a softmax::

    a_ts = silu(q_t . k_s + b_pos(p_t - p_s) + b_time(log2 bucket of the time between)) / p_t
    x_t <- x_t + W_o(norm(sum_s a_ts v_s) * u_t)

p_t is how many real events there are up to and including t. It normalises, so appending never
changes an earlier event and a cache stays right; and it is the position, so padding never moves an
event. A candidate is one more event after all others, seen by itself alone; its score is the
network over (user, e, x) of the candidate.

q . k is divided by sqrt(d / H) where `use_scale` is on, as it is unless told. A norm is a LayerNorm
of eps 1e-6. b_pos and b_time, ``position_bias`` and ``time_bias``, are one number for all heads;
what lies beyond a table's end takes its last entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckv_export.contract import ModelSpec, require
from ckv_export.model import ops
from ckv_export.model.base import CollectiveModel
from ckv_export.model.collective import (
    SIDES,
    UNKNOWN,
    CacheEntries,
    CollectiveAttention,
    Pools,
    Rows,
)
from ckv_export.model.dnn import Block, FoldedDnn
from ckv_export.model.embedding import Projection, ReducibleProjection, frozen
from ckv_export.model.events import EventEmbedding, Inputs, Lookup, item_chunks
from ckv_export.model.links import Links, New, log2_bucket
from ckv_export.model.shapes import FREE, Shapes, collective_shapes, dnn_shapes

NORM_EPS = 1e-6


class ItemRows(nn.Module):
    """The pool rows of every item in the first layer, int32 [items], None where there is no pool.

    No position and no other event has a part in them.
    """

    def __init__(self, k: Tensor | None, v: Tensor | None) -> None:
        super().__init__()
        self.k, self.v = (None if rows is None else Lookup(rows) for rows in (k, v))

    def forward(self, ids: Tensor) -> Rows:
        """Ids int32 [B, N] -> rows [B, N] of K and V."""
        key, value = (None if found is None else found(ids) for found in (self.k, self.v))
        return key, value


class HstuLayer(nn.Module):
    """One layer: norm, gated pointwise attention, residual."""

    def __init__(self, spec: ModelSpec, layer: int, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        prefix = f"attention.{layer}"
        self.attention = CollectiveAttention(spec.attention, layer, state)
        self.gate = ReducibleProjection(state[f"{prefix}.u.weight"])
        self.output = ReducibleProjection(state[f"{prefix}.o.weight"])
        self.norm = _norm(state, f"{prefix}.norm")
        self.output_norm = _norm(state, f"{prefix}.output_norm")
        self.position_bias = frozen(state[f"{prefix}.position_bias"].unsqueeze(1))
        time_bias = state.get(f"{prefix}.time_bias")
        self.time_bias = None if time_bias is None else frozen(time_bias.unsqueeze(1))

    def forward(
        self, x: Tensor, past: CacheEntries, links: Links, pools: Pools, rows: Rows
    ) -> tuple[Tensor, CacheEntries]:
        """New events x [B, Q, d] after cached `past` -> x of the next layer, and their entries."""
        z = self.norm(x)
        new = self.attention.encode(z, rows)
        query = F.silu(self.attention.query(z))
        attended = self.attention.attend_pointwise(
            query, past.then(new), self._bias(links), links.visible, links.count, pools
        )
        gated = self.output_norm(ops.widened(attended)) * F.silu(self.gate(z))
        return x + self.output(gated), new

    def encode(self, x: Tensor, rows: Rows = UNKNOWN) -> CacheEntries:
        """What is cached of events x [B, Q, d]."""
        return self.attention.encode(self.norm(x), rows)

    def _bias(self, links: Links) -> Tensor:
        """Relative bias, the same for all heads: [B, Q, N + C]."""
        farthest = self.position_bias.shape[0] - 1
        by_row = F.embedding(links.distance.clamp(max=farthest), self.position_bias).squeeze(-1)
        bias, own = links.new.each(by_row), self.position_bias[:1]
        if links.bucket is not None and self.time_bias is not None:
            last = self.time_bias.shape[0] - 1
            bias = bias + F.embedding(links.bucket.clamp(max=last), self.time_bias).squeeze(-1)
            own = own + self.time_bias[:1]
        # Of candidates each sees itself alone: no position and no time away.
        return links.new.beside_candidates(bias, own.expand(bias.shape[1], -1))


class Hstu(CollectiveModel):
    """HSTU; no options: layers, heads and features are the specification's."""

    def __init__(
        self, spec: ModelSpec, state: Mapping[str, Tensor], events: EventEmbedding | None = None
    ) -> None:
        super().__init__(spec, state, events)
        self.input = Projection(state["input.weight"])
        self._layers = [HstuLayer(spec, i, state) for i in range(spec.num_layers)]
        self.layers = nn.ModuleList(self._layers)
        self.item_rows: ItemRows | None = None
        blocks = [
            Block("user", spec.d_user_features),
            Block("target", spec.d_event),
            Block("state", spec.attention.d),
        ]
        self.dnn = FoldedDnn(spec.dnn, [b for b in blocks if b.width], state)

    @classmethod
    def shapes(cls, spec: ModelSpec) -> Shapes:
        """W_in [d, d_e]; per layer W_u [d, d], two norms, a bias per distance and time bucket."""
        d = spec.attention.d
        shapes: Shapes = {"input.weight": (d, spec.d_event)}
        for layer in range(spec.num_layers):
            prefix = f"attention.{layer}"
            shapes |= collective_shapes(spec.attention, d, layer)
            shapes |= {f"{prefix}.u.weight": (d, d), f"{prefix}.position_bias": (FREE,)}
            for norm in ("norm", "output_norm"):
                shapes |= {f"{prefix}.{norm}.{name}": (d,) for name in ("weight", "bias")}
            if spec.timestamp is not None:
                shapes[f"{prefix}.time_bias"] = (FREE,)
        return shapes | dnn_shapes(spec.dnn, spec.d_user_features + spec.d_event + d)

    @classmethod
    def check_options(cls, spec: ModelSpec) -> None:
        """Raise `SpecError` where `spec` has a window, which HSTU knows nothing of."""
        require(spec.window is None, f"hstu attends to the whole history, got window {spec.window}")
        super().check_options(spec)

    @property
    def attentions(self) -> Sequence[CollectiveAttention]:
        """One a layer."""
        return [layer.attention for layer in self._layers]

    def prefill(self, inputs: Inputs) -> list[CacheEntries]:
        """The events given, after those in ``past_*``; any chunking gives the same entries."""
        links = self._links(inputs, ["past", "event"])
        events = self.input(self.embedded(inputs, "event"))
        # The last layer's attention changes nothing that is cached.
        below = [self.pools_of(inputs, i) for i in range(self.spec.num_layers - 1)]
        rows = self._rows(inputs, ["event"])
        states, entries = self._run(events, self.cached(inputs, "past"), links, below, rows)
        return [*entries, self._layers[-1].encode(states, rows[-1])]

    def decode(self, inputs: Inputs) -> tuple[Tensor, list[CacheEntries]]:
        """Append events, then score candidates that see everything but one another."""
        target = self.embedded(inputs, "candidate")
        events = self.input(torch.cat([self.embedded(inputs, "append"), target], dim=1))
        links = self._links(inputs, ["history", "append"], target.shape[1])
        pools = [self.pools_of(inputs, i) for i in range(self.spec.num_layers)]
        rows = self._rows(inputs, ["append", "candidate"])
        states, entries = self._run(events, self.cached(inputs, "cache"), links, pools, rows)
        appended = links.new.appended
        blocks = {"target": target, "state": states[:, appended:]}
        return self.score(inputs, blocks), [layer.first(appended) for layer in entries]

    def route_items(self, items: int) -> None:
        """From now on look up the first layer's rows of items 0 to `items` - 1.

        For events that come as ids alone: they are all that the first layer knows of an event.
        """
        with torch.no_grad():
            chunks = item_chunks(self.events, items)
            parts = [self._layers[0].encode(self.input(events)) for events in chunks]
        self.item_rows = ItemRows(*(_joined(p.side(side)[0] for p in parts) for side in SIDES))

    def _rows(self, inputs: Inputs, groups: Sequence[str]) -> list[Rows]:
        """For each layer the rows that are known of the events of `groups`, one after another."""
        rows = [UNKNOWN] * self.spec.num_layers
        if self.item_rows is not None:
            ids = [inputs[f"{group}_{self.events.form.item_key}"] for group in groups]
            rows[0] = self.item_rows(torch.cat(ids, dim=1))
        return rows

    def _run(
        self,
        x: Tensor,
        past: Sequence[CacheEntries],
        links: Links,
        pools: Sequence[Pools],
        rows: Sequence[Rows],
    ) -> tuple[Tensor, list[CacheEntries]]:
        """As many layers as there are `pools`."""
        entries = []
        for layer, cached, read, known in zip(self._layers, past, pools, rows, strict=False):
            x, new = layer(x, cached, links, read, known)
            entries.append(new)
        return x, entries

    def _links(self, inputs: Inputs, groups: Sequence[str], candidates: int | None = None) -> Links:
        """Links of the events of the last of `groups`, and of as many candidates after them."""
        mask = torch.cat([inputs[f"{g}_mask"] for g in groups], dim=1)
        new = New(inputs[f"{groups[-1]}_mask"].shape[1], candidates)
        before = mask.shape[1] - new.appended
        order = torch.arange(mask.shape[1], device=mask.device)
        place = mask.to(torch.int32).cumsum(1, dtype=torch.int32)
        visible = (order <= order[before:, None]) & mask[:, None, :]
        count = asked = place[:, before:]
        if candidates is not None:
            # Each candidate stands one after the last event, whichever candidate it is.
            after = mask.to(torch.int32).sum(1, keepdim=True, dtype=torch.int32) + 1
            visible = torch.cat([visible, mask[:, None, :]], dim=1)
            asked = torch.cat([asked, after], dim=1)
            count = torch.cat([count, after.expand(-1, candidates)], dim=1)
        distance = torch.where(visible, asked[:, :, None] - place[:, None, :], 0)
        seen = new.each(visible.to(torch.int32))
        return Links(
            new=new,
            visible=new.beside_candidates(seen, new.themselves(mask.device)),
            distance=distance,
            bucket=self._buckets(inputs, groups, candidates is not None),
            count=count.clamp(min=1).to(torch.float32),
        )

    def _buckets(self, inputs: Inputs, groups: Sequence[str], candidates: bool) -> Tensor | None:
        if self.spec.timestamp is None:
            return None
        name = self.spec.timestamp.name
        seen = torch.cat([inputs[f"{g}_{name}"] for g in groups], dim=1)
        asking = inputs[f"{groups[-1]}_{name}"]
        if candidates:
            asking = torch.cat([asking, inputs[f"candidate_{name}"]], dim=1)
        return log2_bucket(asking[:, :, None] - seen[:, None, :])


def _joined(parts: Iterable[Tensor | None]) -> Tensor | None:
    """Rows [1, n] of chunks of the catalogue as one [items]."""
    found = [part[0] for part in parts if part is not None]
    return torch.cat(found) if found else None


def _norm(state: Mapping[str, Tensor], name: str) -> nn.LayerNorm:
    weight = state[f"{name}.weight"]
    norm = nn.LayerNorm(weight.shape[0], eps=NORM_EPS, dtype=weight.dtype)
    norm.weight, norm.bias = frozen(weight), frozen(state[f"{name}.bias"])
    return norm

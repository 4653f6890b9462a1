"""How close the scoring of a candidate came to a choice that no output shows.

A long branch selects events; HSTU routes the candidate itself, as it does every event.

SIM and TWIN keep the k best scores: near is a score next to the k-th on the other side. ETA and
SDIM compare signs of projections: near is a projection next to zero. Distances are divided by the
sum of the magnitudes of the terms that were added up, since rounding is proportional to it.
Exact ties don't count: which event wins those is part of the model. Events that are alike tie
exactly, though a matrix product may round the same sum otherwise in another place. HSTU's are the
differences of router logits, as `ExpectedCase.margins` has them for events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ckv_export.contract import ModelSpec
from ckv_export.model.reference import MASKED, Reference

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Places = NDArray[np.int64]


def selection_margin(
    reference: Reference,
    history: Mapping[str, Tensor],
    mask: Tensor,
    candidates: Mapping[str, Tensor],
) -> NDArray[np.float32]:
    """Margin [B, C] of the choices made for each candidate.

    `history`: features of all events [B, N, ...], `mask` [B, N]. Infinity where nothing could
    have been chosen otherwise.
    """
    spec = reference.spec
    if spec.layers_see_history:
        return _routed(reference, history, mask, candidates)
    events, targets = (
        reference.embed(spec.embedded_item_features, values).double().numpy()
        for values in (history, candidates)
    )
    state = {n: t.double().numpy() for n, t in reference.state.items() if n.startswith("long.")}
    margin = _MARGINS[spec.kind](spec, state, events, targets, mask.numpy())
    return margin.astype(np.float32)


def _routed(
    reference: Reference,
    history: Mapping[str, Tensor],
    mask: Tensor,
    candidates: Mapping[str, Tensor],
) -> NDArray[np.float32]:
    """The least router margin of each candidate, put alone behind the history, over the layers."""
    users, count = next(iter(candidates.values())).shape[:2]
    least = np.full((users, count), np.inf, np.float32)
    seen = torch.cat([mask, mask.new_ones(users, 1)], dim=1)
    for c in range(count):
        sequence = {
            name: torch.cat([history[name], values[:, c : c + 1]], dim=1)
            for name, values in candidates.items()
        }
        for entries in reference.cache(sequence, seen):
            found = [m[:, -1].float().numpy() for m in entries.margin.values() if m is not None]
            least[:, c] = np.min([least[:, c], *found], axis=0)
    return least


def _scored(
    spec: ModelSpec, asked: Floats, found: Floats, places: Places, mask: Bools, masked: float
) -> Floats:
    """Margin [B, C] of the top-k of asked [B, C, w] . found [B, N, w], masked ones as given.

    `places`: of `_first_alike`.
    """
    topk = int(spec.options["topk"])
    products = np.take_along_axis(asked @ found.transpose(0, 2, 1), places[:, None], axis=-1)
    scores = np.where(mask[:, None], products, masked)
    terms = np.where(mask[:, None], np.abs(asked) @ np.abs(found).transpose(0, 2, 1), 0.0)
    scale = terms.max(axis=-1, initial=0.0)
    return np.divide(gap(scores, topk), scale, out=np.full(scale.shape, np.inf), where=scale > 0)


def _first_alike(events: Floats) -> Places:
    """Where the first event stands that equals each of events [B, N, d_e]: [B, N]."""
    places = np.zeros(events.shape[:2], np.int64)
    for place, user in zip(places, events, strict=True):
        _, first, which = np.unique(user, axis=0, return_index=True, return_inverse=True)
        place[:] = first[which.reshape(-1)]
    return places


def gap(scores: Floats, topk: int) -> Floats:
    """Least distance between different values on both sides of the top-k of scores [..., N]."""
    if scores.shape[-1] <= topk:
        return np.full(scores.shape[:-1], np.inf)
    ordered = -np.sort(-scores, axis=-1)
    last, first = ordered[..., topk - 1, None], ordered[..., topk, None]
    above = np.where(scores > last, scores - last, np.inf).min(axis=-1)
    below = np.where(scores < last, last - scores, np.inf).min(axis=-1)
    return np.where((last == first)[..., 0], np.minimum(above, below), below)


def _sim(
    spec: ModelSpec, state: Mapping[str, Floats], events: Floats, targets: Floats, mask: Bools
) -> Floats:
    asked = targets @ state["long.gsu_target.weight"].T
    found = events @ state["long.gsu_event.weight"].T
    return _scored(spec, asked, found, _first_alike(events), mask, 0.0)


def _twin(
    spec: ModelSpec, state: Mapping[str, Floats], events: Floats, targets: Floats, mask: Bools
) -> Floats:
    query, key = targets @ state["long.q.weight"].T, events @ state["long.k.weight"].T
    heads = spec.attention.num_heads
    parts = zip(np.split(query, heads, axis=-1), np.split(key, heads, axis=-1), strict=True)
    places = _first_alike(events)
    margins = [_scored(spec, q, k, places, mask, MASKED) for q, k in parts]
    return np.min(margins, axis=0)


def _signs(state: Mapping[str, Floats], x: Floats) -> Floats:
    """Least relative projection of each row of x [..., d_e]: [...]; zeros don't count."""
    rotations = state["long.rotations"].reshape(x.shape[-1], -1)
    projected, terms = np.abs(x @ rotations), np.abs(x) @ np.abs(rotations)
    counted = projected > 0
    relative = np.divide(projected, terms, out=np.full(terms.shape, np.inf), where=counted)
    return relative.min(axis=-1, initial=np.inf)


def _hashed(
    spec: ModelSpec, state: Mapping[str, Floats], events: Floats, targets: Floats, mask: Bools
) -> Floats:
    if events.shape[1] <= int(spec.options.get("topk", 0)):
        return np.full(targets.shape[:2], np.inf)
    nearest = np.where(mask, _signs(state, events), np.inf).min(axis=-1, initial=np.inf)
    return np.minimum(nearest[:, None], _signs(state, targets))


Margin = Callable[[ModelSpec, Mapping[str, Floats], Floats, Floats, Bools], Floats]
_MARGINS: Mapping[str, Margin] = {"sim": _sim, "twin": _twin, "eta": _hashed, "sdim": _hashed}

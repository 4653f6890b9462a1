"""Routing that the gate excuses, given to the graph that is believed.

A row number that rounding may flip is no fault, and all that follows from the other row differs
from what the right row would give. So that a fault behind it can be told, the believed graph is
led the same way: it gets the router logits of the graph under test where those flip a near-tie.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ckv_export.contract import ModelSpec
from ckv_export.parity.compare import alike
from ckv_export.parity.probe import GraphProbe, top_margin
from ckv_export.parity.tolerances import routing_of, selection_of
from ckv_export.runtimes.base import Array, Arrays


def excused_logits(
    tested: GraphProbe,
    truth: GraphProbe,
    feeds: Mapping[str, Array],
    truth_feeds: Mapping[str, Array],
    spec: ModelSpec,
    precision: str,
    candidates: int = 0,
) -> Arrays:
    """Router logits inside `truth` under which it routes as `tested` wherever that is excused.

    Layer by layer, since those of a layer follow from the rows below it. `candidates`: how many of
    the last tokens that a graph routes are candidates, which the gate excuses for another
    margin. Empty where no flip is excused. A layer that one of the graphs doesn't route is left
    alone.
    """
    names = {s: (tested.router_logits(s), truth.router_logits(s)) for s in "kv"}
    inner: Arrays = {}
    for layer in range(spec.num_layers):
        pairs = {
            side: (ours[layer], theirs[layer])
            for side, (ours, theirs) in names.items()
            if layer in ours and layer in theirs
        }
        got = tested.run(feeds, [ours for ours, _ in pairs.values()])
        expected = truth.run(truth_feeds, [theirs for _, theirs in pairs.values()], inner)
        for side, (ours, theirs) in pairs.items():
            a, b = got[ours], expected[theirs]
            if alike(a, b):
                needed = _needed(b.shape[1], candidates, layer, spec.num_layers, precision)
                excused = _flipped_ties(a, b, spec.attention.pool_rows(side), needed)
                if excused.any():
                    inner[theirs] = np.where(excused[..., None], a, b)
    return inner


def _needed(
    tokens: int, candidates: int, layer: int, layers: int, precision: str
) -> NDArray[np.float64]:
    """Below what margin each token's flip is excused: [N], events before candidates."""
    needed = np.full(tokens, routing_of(layer, precision).margin)
    needed[tokens - candidates :] = selection_of(layers, precision)
    return needed


def _flipped_ties(
    got: Array, expected: Array, rows: int, needed: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Tokens [B, N] whose best of logits [B, N, >= rows] is another, and was nearly that before."""
    a, b = got[..., :rows], expected[..., :rows]
    flipped: NDArray[np.bool_] = a.argmax(-1) != b.argmax(-1)
    return flipped & (top_margin(b).astype(np.float64) < needed)

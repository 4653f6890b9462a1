"""How far each tensor may lie from the reference, and why.

The only table of tolerances. Row numbers have none: they are compared for equality, and a
difference is excused only by a router margin below that of `routing_of`. Likewise a score that is
off is excused only by a selection margin below `EXPLAINED_SELECTION`.

A bundle's precision (its manifest says) chooses the rows. Half precisions are bounded by their unit
roundoff u: 2^-11 = 4.9e-4 for fp16, 2^-8 = 3.9e-3 for bf16. What is cached of the first layer, and
which events a search selects, is computed in fp32 whatever the precision, and judged as such.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckv_export.contract import PRECISIONS

EXPLAINED_MARGIN = 1e-5
"""A flip between rows whose logits differ by less is rounding: sums of a few hundred fp32
products in another order differ by some 1e-6."""

EXPLAINED_SELECTION = 2e-6
"""A selection between events whose scores differ by less, measured against the sum of the
magnitudes of a score's terms, is rounding: two chained fp32 sums of a few hundred terms in
another order differ by some 1e-6 of that."""

MOST_EXCUSED_SCORES = 0.1
"""Largest share of all scores that near-ties of the selection may excuse. A near-tie is an
accident of one pair of events; a broken search meets them no more often than a sound one."""

ROUNDOFF = dict(zip(PRECISIONS, (2.0**-24, 2.0**-11, 2.0**-8), strict=True))
"""Precision of the graphs -> largest relative error of rounding one number."""

HALVES = PRECISIONS[1:]

INSIDE = {"fp32": 1e-5, **{p: 16 * ROUNDOFF[p] for p in HALVES}}
"""What the localizer takes for rounding of a tensor inside a graph, as a share of its largest
number: 16u of a half precision as above; in fp32 what a sum of some thousand terms may lose."""

SENTINEL = 1e8
"""Numbers from here on are masks' stand-ins for infinity, and tell nothing of a tensor's size."""


@dataclass(frozen=True)
class Tolerance:
    """``|got - expected| <= absolute * scale + relative * |expected|`` in every element.

    `scale` is the largest ``|expected|`` of the tensor, at least 1: a small result of large terms
    that cancel carries the rounding of the terms. `typical`: what the mean of the difference over
    `scale`, over all cases, may be, where the bound of an element must leave room for rare ones.
    """

    absolute: float
    relative: float
    reason: str
    typical: float | None = None


@dataclass(frozen=True)
class Routing:
    """A flip is excused below `margin`; more than `most`, a share of all tokens, never are."""

    margin: float
    most: float
    reason: str


def _half(precision: str, roundings: int, reason: str) -> Tolerance:
    u = ROUNDOFF[precision]
    told = f"{roundings}u, on average u = {u:.1e}: {reason}"
    return Tolerance(roundings * u, roundings * u, told, typical=u)


_SCORE = (
    "eight roundings one behind the other (projections, weights, values, each layer of the scoring "
    "network) of terms of size 4, times the sigmoid's slope of 1/4"
)
_LAYERED = (
    "the roundings of a half-precision layer below, behind a LayerNorm of its attention outputs: "
    "where those nearly cancel, which is rare, it multiplies their rounding by 1 / what is left"
)

TOLERANCES = {
    "score": Tolerance(
        2e-6,
        0.0,
        "a probability: fp32 sums of up to some thousand terms in another order move the logit by "
        "a few 1e-6, and the sigmoid's slope is at most 1/4",
    ),
    "user": Tolerance(1e-6, 1e-5, "one fp32 dot product of the event embedding, then silu twice"),
    "user, layered": Tolerance(
        5e-6,
        1e-5,
        "the same behind a LayerNorm of attention outputs: where they are smaller than the root of "
        "its eps (1e-3), it multiplies their rounding by up to a thousand",
    ),
    **{f"score, {p}": _half(p, 8, _SCORE) for p in HALVES},
    **{f"score, layered, {p}": _half(p, 32, _LAYERED) for p in HALVES},
    **{f"user, layered, {p}": _half(p, 32, _LAYERED) for p in HALVES},
}

ROUTINGS = {
    "router": Routing(
        EXPLAINED_MARGIN,
        1.0,
        "fp32 logits of an fp32 input, whatever the precision of the rest: sums of a few hundred "
        "products in another order differ by some 1e-6",
    ),
    **{
        f"router, layered, {p}": Routing(
            64 * ROUNDOFF[p],
            10 * ROUNDOFF[p],
            "64u: fp32 logits of what half-precision layers below computed, as a user part there; "
            "no more than 10u of all, since margins below u, the usual error, are that rare",
        )
        for p in HALVES
    },
}


def tolerance_of(tensor: str, layers: int = 1, precision: str = "fp32") -> Tolerance:
    """The row for an output named ``score`` or ``*_user`` of a model with so many layers.

    Rounding adds up from layer to layer, so the bounds grow with their number.
    """
    kind = "score" if tensor == "score" else "user"
    layered = f"{kind}, layered" if layers > 1 else kind
    names = (f"{layered}, {precision}", layered, kind)
    row = TOLERANCES[next(name for name in names if name in TOLERANCES)]
    typical = None if row.typical is None else row.typical * layers
    return Tolerance(row.absolute * layers, row.relative * layers, row.reason, typical)


def entry_tolerances(tensor: str, layers: int, precision: str) -> list[Tolerance]:
    """The rows for an output ``*_user``, one of each layer: the first is of fp32 in any model."""
    return [tolerance_of(tensor, layers), *[tolerance_of(tensor, layers, precision)] * (layers - 1)]


def routing_of(layer: int = 0, precision: str = "fp32") -> Routing:
    """What excuses a flipped row number of a layer, counted from 0."""
    return ROUTINGS.get(f"router, layered, {precision}" if layer else "router", ROUTINGS["router"])


def selection_of(layers: int = 1, precision: str = "fp32") -> float:
    """Below what a selection margin excuses a score.

    A candidate that is routed through layers is one event among thousands: it is given a quarter of
    the margin that their rare ones need, or half of all candidates would be near-ties in bf16.
    """
    if layers == 1:
        return EXPLAINED_SELECTION
    return max(routing_of(layers - 1, precision).margin / 4, EXPLAINED_MARGIN)

"""How far each tensor may lie from the reference, and why.

The only table of tolerances. Row numbers have none: they are compared for equality, and a
difference is excused only by a router margin below `EXPLAINED_MARGIN`.
"""

from __future__ import annotations

from dataclasses import dataclass

EXPLAINED_MARGIN = 1e-5
"""A flip between rows whose logits differ by less is rounding: sums of a few hundred fp32
products in another order differ by some 1e-6."""


@dataclass(frozen=True)
class Tolerance:
    """``|got - expected| <= absolute * scale + relative * |expected|`` in every element.

    `scale` is the largest ``|expected|`` of the tensor, at least 1: a small result of large terms
    that cancel carries the rounding of the terms.
    """

    absolute: float
    relative: float
    reason: str


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
}


def tolerance_of(tensor: str, layers: int = 1) -> Tolerance:
    """The row for an output named ``score`` or ``*_user`` of a model with so many layers.

    Rounding adds up from layer to layer, so the bounds grow with their number.
    """
    row = TOLERANCES["score" if tensor == "score" else "user" if layers == 1 else "user, layered"]
    return Tolerance(row.absolute * layers, row.relative * layers, row.reason)

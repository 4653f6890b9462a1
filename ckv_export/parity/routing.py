"""Which events were routed to other rows, how close those choices were, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckv_export.parity.gate import unflipped_users
from ckv_export.parity.replay import CaseRun
from ckv_export.runtimes.base import Array

QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)
EDGES = tuple(10.0**p for p in range(-8, 3))
"""Bins of the margin's histogram; the first and last take what lies beyond."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Margins:
    """Distribution of router margins: count, value at each of `QUANTILES`, events per bin."""

    count: int
    quantiles: tuple[float, ...]
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class LayerRouting:
    """Real events of all cases in one layer, for side "k" or "v"."""

    layer: int
    side: str
    tokens: int
    flips: int
    flipped: Margins
    unflipped: Margins

    @property
    def rate(self) -> float:
        """Flips per event."""
        return self.flips / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class ScoreErrors:
    """Absolute errors of `scores` scores; None without any that is finite."""

    scores: int
    max: float | None
    mean: float | None
    median: float | None
    p99: float | None


@dataclass(frozen=True)
class RoutingReport:
    """`served`: errors with flipped rows as they are; `forced`: with the reference's rows.

    A row that flipped inside decode, of an appended event, can't be forced: such users are in
    `served` alone.
    """

    layers: tuple[LayerRouting, ...]
    served: ScoreErrors
    forced: ScoreErrors

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        layers = [asdict(layer) | {"rate": layer.rate} for layer in self.layers]
        return {
            "quantiles": list(QUANTILES),
            "edges": list(EDGES),
            "layers": layers,
            "score_error_served": asdict(self.served),
            "score_error_forced": asdict(self.forced),
        }


def routing_report(runs: Sequence[CaseRun]) -> RoutingReport:
    """What became of the row numbers in these runs, of one runtime."""
    runs = [run for run in runs if run.sound]
    layers: list[LayerRouting] = []
    for side in ("k", "v"):
        found = [pair for run in runs for pair in _routed(run, side)]
        if found:
            flips, margins = (np.concatenate(part, axis=1) for part in zip(*found, strict=True))
            layers += [_layer(n, side, *row) for n, row in enumerate(zip(flips, margins))]  # noqa: B905
    layers.sort(key=lambda each: (each.layer, each.side))
    served = [(r.as_served["score"], r.case.outputs["score"]) for r in runs]
    forced = [
        (r.decoded["score"][kept], r.case.outputs["score"][kept])
        for r in runs
        for kept in [unflipped_users(r.case, r.decoded)]
    ]
    return RoutingReport(tuple(layers), score_errors(served), score_errors(forced))


def _routed(run: CaseRun, side: str) -> Iterator[tuple[NDArray[np.bool_], Floats]]:
    """Flips and margins, both [L, real events], of cached and of appended events."""
    inputs = run.case.case.inputs
    for group, mask, got in (("cache", "history", run.cache), ("append", "append", run.decoded)):
        name = f"{group}_{side}_index"
        if name not in run.case.margins:
            continue
        expected, margin = run.case.outputs[name], run.case.margins[name]
        real = inputs[f"{mask}_mask"].astype(bool)
        flips = got[name] != expected
        yield (
            np.moveaxis(flips, 1, 0)[:, real],
            np.moveaxis(margin, 1, 0)[:, real].astype(np.float64),
        )


def _layer(layer: int, side: str, flips: NDArray[np.bool_], margin: Floats) -> LayerRouting:
    return LayerRouting(
        layer, side, flips.size, int(flips.sum()), margins(margin[flips]), margins(margin[~flips])
    )


def margins(values: Floats) -> Margins:
    """Their distribution; infinite ones, where no row was nearly another, are left out."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return Margins(0, (), (0,) * (len(EDGES) + 1))
    bins = np.bincount(np.searchsorted(EDGES, finite, side="right"), minlength=len(EDGES) + 1)
    quantiles = tuple(float(q) for q in np.quantile(finite, QUANTILES))
    return Margins(finite.size, quantiles, tuple(int(n) for n in bins))


def score_errors(pairs: Sequence[tuple[Array, Array]]) -> ScoreErrors:
    """Errors over all (got, expected) of equal shape."""
    parts = [
        np.abs(g.astype(np.float64) - e.astype(np.float64)).ravel()
        for g, e in pairs
        if g.shape == e.shape
    ]
    errors = np.concatenate([np.zeros(0), *parts])
    if errors.size == 0 or not np.isfinite(errors).all():
        return ScoreErrors(errors.size, None, None, None, None)
    return ScoreErrors(
        errors.size,
        float(errors.max()),
        float(errors.mean()),
        float(np.median(errors)),
        float(np.percentile(errors, 99)),
    )

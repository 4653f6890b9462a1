"""Do the scores still rank the candidates as the truth does?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckv_export.parity.replay import CaseRun
from ckv_export.runtimes.base import Array

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RankingReport:
    """Rankings of `users` with two candidates at least, means over users.

    `ndcg`: NDCG at `top` with the truth's scores as gains; `overlap`: share of the truth's best
    `top` that are among the runtime's; `kendall`: tau-b of the two orders, and its smallest value.
    `auc`, `auc_truth`: over all candidates together, None without labels of both kinds.
    """

    top: int
    users: int
    ndcg: float | None
    overlap: float | None
    kendall: float | None
    least_kendall: float | None
    auc: float | None
    auc_truth: float | None

    @property
    def auc_delta(self) -> float | None:
        """AUC of the runtime less that of the truth."""
        if self.auc is None or self.auc_truth is None:
            return None
        return self.auc - self.auc_truth

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self) | {"auc_delta": self.auc_delta}


def ranking_report(runs: Sequence[CaseRun], top: int) -> RankingReport:
    """Rank by the scores as they were served, flipped rows and all."""
    runs = [run for run in runs if run.sound]
    pairs = [
        (got.astype(np.float64), truth.astype(np.float64))
        for run in runs
        for got, truth in zip(run.as_served["score"], run.case.outputs["score"], strict=True)
        if truth.size > 1 and np.isfinite([got, truth]).all()
    ]
    aucs = _aucs(runs)
    if not pairs:
        return RankingReport(top, 0, None, None, None, None, *aucs)
    taus = [tau for tau in (kendall_tau(*pair) for pair in pairs) if tau is not None]
    return RankingReport(
        top,
        len(pairs),
        float(np.mean([ndcg(*pair, top) for pair in pairs])),
        float(np.mean([overlap(*pair, top) for pair in pairs])),
        float(np.mean(taus)) if taus else None,
        min(taus, default=None),
        *aucs,
    )


def _aucs(runs: Sequence[CaseRun]) -> tuple[float | None, float | None]:
    labelled = [run for run in runs if run.case.case.labels is not None]
    if not labelled:
        return None, None
    labels = np.concatenate([np.ravel(run.case.case.labels) for run in labelled])  # type: ignore[arg-type]
    got = np.concatenate([run.as_served["score"].ravel() for run in labelled])
    truth = np.concatenate([run.case.outputs["score"].ravel() for run in labelled])
    return auc(got, labels), auc(truth, labels)


def order(scores: Floats) -> NDArray[np.intp]:
    """Positions from the best to the worst; the lower position first where scores are equal."""
    return np.argsort(-scores, kind="stable")


def ndcg(got: Floats, truth: Floats, top: int) -> float:
    """NDCG of got's order [C], gains the truth's scores above its lowest; 1 if there are none."""
    gains = truth - truth.min()
    discounts = 1.0 / np.log2(np.arange(2, min(top, gains.size) + 2))
    best = float((gains[order(truth)][:top] * discounts).sum())
    return float((gains[order(got)][:top] * discounts).sum()) / best if best > 0 else 1.0


def overlap(got: Floats, truth: Floats, top: int) -> float:
    """Share of the truth's best `top` (all, if there are fewer) that are among got's."""
    kept = min(top, truth.size)
    return len(set(order(got)[:kept]) & set(order(truth)[:kept])) / kept


def kendall_tau(a: Floats, b: Floats) -> float | None:
    """Kendall's tau-b of two score vectors [C]; None where one of them ties everything.

    (concordant - discordant) / sqrt(pairs not tied in a * pairs not tied in b).
    """
    upper = np.triu_indices(a.size, 1)
    signs = [np.sign(x[:, None] - x[None, :])[upper] for x in (a, b)]
    untied = [np.abs(s).sum() for s in signs]
    if 0.0 in untied:
        return None
    return float((signs[0] * signs[1]).sum() / np.sqrt(untied[0] * untied[1]))


def auc(scores: Array, labels: Array) -> float | None:
    """Chance that a clicked candidate scores above another, a tie counting half.

    None unless there are both kinds and every score is finite.
    """
    scores = scores.astype(np.float64)
    clicked, others = (np.sort(scores[labels == kind]) for kind in (1, 0))
    if not (clicked.size and others.size and np.isfinite(scores).all()):
        return None
    below = np.searchsorted(others, clicked, "left") + np.searchsorted(others, clicked, "right")
    return float(below.sum() / (2.0 * clicked.size * others.size))

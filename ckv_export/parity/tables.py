"""The report as rows of text, for the console and for the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ckv_export.parity.gate import RuntimeResult
from ckv_export.parity.localize import Divergence
from ckv_export.parity.ranking import RankingReport
from ckv_export.parity.report import ParityReport, TensorRow, routing_of_runs, tensor_rows
from ckv_export.parity.routing import LayerRouting, Margins, RoutingReport, ScoreErrors
from ckv_export.parity.steps import StepsReport

VERDICTS = {True: "ok", False: "FAILED"}


@dataclass(frozen=True)
class TextTable:
    """A title, column heads, and rows of as many cells."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def runtime_tables(report: ParityReport, outcome: RuntimeResult) -> Iterator[TextTable]:
    """Everything there is to say about one runtime."""
    yield tensor_table(outcome)
    routing = routing_of_runs(outcome)
    if routing.layers:
        yield _routing(routing)
        yield _score_errors(routing)
    ranking = report.ranking(outcome)
    if ranking.users:
        yield _ranking(ranking)
    if outcome.name in report.steps:
        yield _steps(report.steps[outcome.name])


def localized_sentence(report: ParityReport, outcome: RuntimeResult) -> str | None:
    """What the localizer found, where it was asked."""
    found = report.localized.get(outcome.name)
    return found.sentence() if isinstance(found, Divergence) else found


def number(value: float | None, digits: int = 2) -> str:
    """A short number; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


def tensor_table(outcome: RuntimeResult) -> TextTable:
    """A row per tensor."""
    heads = ("tensor", "elements", "worst", "mean", "p99", "p99 relative", "cosine", "excused", "")
    return TextTable("Tensors", heads, tuple(_tensor(row) for row in tensor_rows(outcome)))


def _tensor(row: TensorRow) -> tuple[str, ...]:
    found = row.statistics
    worst = f"{row.differing} differ" if row.is_index else f"{row.worst:.2g}"
    errors = ["", "", "", ""]
    if found is not None:
        worst = f"{row.worst:.2g}" if found.max is None else f"{found.max:.2g}"
        cosine = "-" if found.cosine is None else f"{found.cosine:.8f}"
        errors = [number(found.mean), number(found.p99), number(found.p99_relative), cosine]
    excused = str(row.excused) if row.is_index or row.excused else ""
    return (row.tensor, str(row.elements), worst, *errors, excused, VERDICTS[row.passed])


def _routing(routing: RoutingReport) -> TextTable:
    heads = ("layer", "side", "events", "flips", "rate", "margin of flips", "of the others")
    return TextTable("Routing", heads, tuple(_layer(layer) for layer in routing.layers))


def _layer(layer: LayerRouting) -> tuple[str, ...]:
    return (
        str(layer.layer),
        layer.side.upper(),
        str(layer.tokens),
        str(layer.flips),
        f"{layer.rate:.3%}",
        _margins(layer.flipped),
        _margins(layer.unflipped),
    )


def _margins(margins: Margins) -> str:
    """Least, median and largest."""
    if not margins.count:
        return "-"
    least, _, _, median, _, largest = margins.quantiles
    return f"{least:.1e} .. {median:.1e} .. {largest:.1e}"


def _score_errors(routing: RoutingReport) -> TextTable:
    rows = (("rows as routed", routing.served), ("the truth's rows", routing.forced))
    cells = tuple((what, *_errors(errors)) for what, errors in rows)
    heads = ("score error with", "scores", "worst", "mean", "median", "p99")
    return TextTable("Cost of flips", heads, cells)


def _errors(errors: ScoreErrors) -> tuple[str, ...]:
    numbers = (errors.max, errors.mean, errors.median, errors.p99)
    return (str(errors.scores), *(number(n) for n in numbers))


def _ranking(ranking: RankingReport) -> TextTable:
    top = ranking.top
    rows = [
        ("users with two candidates or more", str(ranking.users)),
        (f"NDCG@{top}", number(ranking.ndcg, 6)),
        (f"overlap of the best {top}", number(ranking.overlap, 6)),
        ("Kendall tau, mean", number(ranking.kendall, 6)),
        ("Kendall tau, least", number(ranking.least_kendall, 6)),
    ]
    if ranking.auc_truth is not None:
        rows.append(("AUC", f"{number(ranking.auc, 6)}, the truth's {ranking.auc_truth:.6g}"))
        rows.append(("AUC delta", number(ranking.auc_delta)))
    return TextTable("Ranking against the truth's", ("what", "value"), tuple(rows))


def _steps(steps: StepsReport) -> TextTable:
    heads = ("step", "events", "rows that differ", "user parts", "worst score", "mean score")
    count = len(steps.steps)
    shown = {count - 1, *range(0, count, max(1, count // 8))}
    rows = tuple(
        (
            str(n + 1),
            str(step.events),
            str(step.flips),
            number(step.user_error),
            number(step.score.max),
            number(step.score.mean),
        )
        for n, step in enumerate(steps.steps)
        if n in shown
    )
    title = (
        f"{count} requests, {steps.appended} events each, written back, against "
        f"{steps.truth}; growth of the mean error {number(steps.growth)} a step"
    )
    return TextTable(title, heads, rows)

"""The report as one page of HTML that needs nothing else."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from ckv_export.parity import plots
from ckv_export.parity.gate import RuntimeResult
from ckv_export.parity.report import JSON_FILE, PAGE_FILE, ParityReport, routing_of_runs
from ckv_export.parity.routing import EDGES, LayerRouting
from ckv_export.parity.steps import StepsReport
from ckv_export.parity.tables import TextTable, localized_sentence, runtime_tables
from ckv_export.parity.tolerances import EXPLAINED_SELECTION, ROUTINGS, TOLERANCES

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
td, th { border-bottom: 1px solid #ccc; padding: .2rem .8rem .2rem 0; text-align: left }
figure { margin: 1rem 0 } svg { max-width: 100%; font: 11px system-ui, sans-serif }
.ok { color: #05630f } .FAILED { color: #a00; font-weight: bold }
"""


def write_report(report: ParityReport, folder: Path) -> None:
    """Write `JSON_FILE` and `PAGE_FILE` into `folder`."""
    write_json(report, folder / JSON_FILE)
    (folder / PAGE_FILE).write_text(page(report), "utf-8")


def write_json(report: ParityReport, path: Path) -> None:
    """Write the report's data to `path`."""
    path.write_text(json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n", "utf-8")


def page(report: ParityReport) -> str:
    """HTML with every table and plot of the report, nothing loaded from elsewhere."""
    verdict = "ok" if report.passed else "FAILED"
    parts = [
        f"<h1>Parity of {html.escape(report.model)}: <span class={verdict}>{verdict}</span></h1>",
        f"<p>{report.cases} cases, {html.escape(report.inputs)}, seed {report.seed}; model "
        f"{report.fingerprint[:16]}, {html.escape(report.precision)}. Each runtime runs the graphs "
        "as a server would; every output and cache tensor is compared with "
        f"{html.escape(report.truth)}.</p>",
    ]
    for outcome in report.outcomes:
        parts += _runtime(report, outcome)
    parts += ["<h2>Not run</h2>", _table(("runtime", "why"), list(report.not_run.items()))]
    parts += ["<h2>Tolerances</h2>", _table(("tensor", "absolute", "relative", "why"), _bounds())]
    head = f"<!doctype html><meta charset=utf-8><title>Parity</title><style>{_STYLE}</style>"
    return head + "\n".join(parts) + "\n"


def _runtime(report: ParityReport, outcome: RuntimeResult) -> list[str]:
    runtime = outcome.runtime
    title = f"{runtime.runtime} {runtime.version}, {runtime.device}"
    parts = [f"<h2>{html.escape(title)}</h2>"]
    left = report.cases - len(outcome.runs)
    if left:
        parts.append(f"<p>Not judged by {left} of the cases, which are beyond its profile.</p>")
    if outcome.first_failure:
        parts.append(f"<p>First to diverge: {html.escape(outcome.first_failure.sentence())}.</p>")
    if outcome.unproven:
        parts.append(f"<p class=FAILED>Not proven: {html.escape(outcome.unproven)}.</p>")
    sentence = localized_sentence(report, outcome)
    if sentence:
        parts.append(f"<p>Inside the graph: {html.escape(sentence)}.</p>")
    parts += [_text_table(each) for each in runtime_tables(report, outcome)]
    parts += [_margin_plot(layer) for layer in routing_of_runs(outcome).layers]
    if outcome.name in report.steps:
        parts.append(_steps_plot(report.steps[outcome.name]))
    return parts


def _margin_plot(layer: LayerRouting) -> str:
    labels = ["less", *(f"{edge:.0e}" for edge in EDGES)]
    title = (
        f"Router margin of {layer.side.upper()} in layer {layer.layer}: events from each size on"
    )
    series = {"flipped": layer.flipped.histogram, "not flipped": layer.unflipped.histogram}
    return plots.bars(title, labels, series)


def _steps_plot(steps: StepsReport) -> str:
    series: dict[str, list[float | None]] = {
        "worst score error": [s.score.max for s in steps.steps],
        "mean score error": [s.score.mean for s in steps.steps],
        "worst user part": [s.user_error for s in steps.steps],
    }
    return plots.lines("Errors of requests one after another", "request", series)


def _bounds() -> list[tuple[str, str, str, str]]:
    rows = [(n, f"{t.absolute:g}", f"{t.relative:g}", t.reason) for n, t in TOLERANCES.items()]
    for name, routing in ROUTINGS.items():
        why = f"equal; a margin below {routing.margin:g} excuses a flip: {routing.reason}"
        rows.append((f"row numbers, {name}", "0", "0", why))
    near = f"excused where the search was within {EXPLAINED_SELECTION:g} of other events"
    return [*rows, ("score, near-ties", "-", "-", near)]


def _text_table(table: TextTable) -> str:
    return f"<h3>{html.escape(table.title)}</h3>{_table(table.heads, table.rows)}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def line(tag: str, cells: Sequence[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    return f"<table>{line('th', heads)}{''.join(line('td', row) for row in rows)}</table>"

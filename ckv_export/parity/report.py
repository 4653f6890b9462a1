"""The gate's outcome as data and as a page."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckv_export.parity.gate import RuntimeResult
from ckv_export.parity.tolerances import EXPLAINED_MARGIN, TOLERANCES

SCHEMA_VERSION = 1
JSON_FILE = "parity.json"
PAGE_FILE = "parity.html"


@dataclass(frozen=True)
class ParityReport:
    """What was compared with the reference: runtimes, cases, and what this machine couldn't run."""

    model: str
    fingerprint: str
    seed: int
    cases: int
    outcomes: tuple[RuntimeResult, ...]
    not_run: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether every runtime agrees with the reference."""
        return all(outcome.passed for outcome in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """JSON data with every comparison."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "cases": self.cases,
            "passed": self.passed,
            "tolerances": {name: asdict(t) for name, t in TOLERANCES.items()},
            "explained_margin": EXPLAINED_MARGIN,
            "not_run": dict(self.not_run),
            "runtimes": [_outcome_dict(outcome) for outcome in self.outcomes],
        }

    def summary(self) -> dict[str, Any]:
        """What the manifest keeps: passed, cases, and each runtime's worst score error."""
        worst = {o.runtime.runtime: o.worst("score") for o in self.outcomes}
        return {
            "passed": self.passed,
            "seed": self.seed,
            "cases": self.cases,
            "worst_score_error": worst,
        }

    def write(self, folder: Path) -> None:
        """Write `JSON_FILE` and `PAGE_FILE` into `folder`."""
        (folder / JSON_FILE).write_text(json.dumps(self.to_dict(), indent=1) + "\n", "utf-8")
        (folder / PAGE_FILE).write_text(_page(self), "utf-8")


def tensors_of(outcome: RuntimeResult) -> list[str]:
    """Names of the tensors compared, each once, in order."""
    return list(dict.fromkeys(r.tensor for r in outcome.results))


def tensor_rows(outcome: RuntimeResult) -> list[tuple[str, int, str, str, str]]:
    """A row per tensor: name, elements compared, worst error, flips excused, verdict."""
    rows = []
    for tensor in tensors_of(outcome):
        results = [r for r in outcome.results if r.tensor == tensor]
        is_index = tensor.endswith("_index")
        worst = max(r.error for r in results)
        differing = sum(r.error for r in results)
        error = f"{differing:.0f} differ" if is_index else f"{worst:.2g}"
        excused = str(sum(r.explained for r in results)) if is_index else ""
        verdict = "ok" if all(r.passed for r in results) else "FAILED"
        rows.append((tensor, sum(r.elements for r in results), error, excused, verdict))
    return rows


def _outcome_dict(outcome: RuntimeResult) -> dict[str, Any]:
    return {
        **asdict(outcome.runtime),
        "passed": outcome.passed,
        "results": [result.to_dict() for result in outcome.results],
    }


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
td, th { border-bottom: 1px solid #ccc; padding: .2rem .8rem .2rem 0; text-align: left }
.ok { color: #05630f } .FAILED { color: #a00; font-weight: bold }
"""


def _page(report: ParityReport) -> str:
    verdict = "ok" if report.passed else "FAILED"
    parts = [
        f"<h1>Parity of {html.escape(report.model)}: <span class={verdict}>{verdict}</span></h1>",
        f"<p>{report.cases} cases, seed {report.seed}; model {report.fingerprint[:16]}. Each "
        "runtime runs both graphs as a server would; every output and cache tensor is compared "
        "with the unsplit PyTorch reference.</p>",
    ]
    for outcome in report.outcomes:
        runtime = outcome.runtime
        parts.append(
            f"<h2>{html.escape(f'{runtime.runtime} {runtime.version}, {runtime.device}')}</h2>"
        )
        heads = ("tensor", "elements", "worst absolute error", "excused by margin", "")
        parts.append(_table(heads, tensor_rows(outcome)))
        if outcome.first_failure:
            parts.append(
                f"<p>First to diverge: {html.escape(outcome.first_failure.sentence())}.</p>"
            )
    parts += ["<h2>Not run</h2>", _table(("runtime", "why"), list(report.not_run.items()))]
    parts += ["<h2>Tolerances</h2>", _table(("tensor", "absolute", "relative", "why"), _bounds())]
    head = f"<!doctype html><meta charset=utf-8><title>Parity</title><style>{_STYLE}</style>"
    return head + "\n".join(parts) + "\n"


def _bounds() -> list[tuple[str, str, str, str]]:
    rows = [(n, f"{t.absolute:g}", f"{t.relative:g}", t.reason) for n, t in TOLERANCES.items()]
    why = f"equal; a router margin below {EXPLAINED_MARGIN:g} excuses a flip as rounding"
    return [*rows, ("row numbers", "0", "0", why)]


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def line(tag: str, cells: Sequence[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    return f"<table>{line('th', heads)}{''.join(line('td', row) for row in rows)}</table>"

"""The report as tables, plots, JUnit XML and JSON that its schema describes."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as Xml

import jsonschema
import numpy as np
import pytest
from ckv_testing.bundles import manifest_of
from ckv_testing.exports import Export
from ckv_testing.runs import Tampered
from rich.text import Text

from ckv_export.cli.show import parity_tables
from ckv_export.parity import plots
from ckv_export.parity.gate import judge
from ckv_export.parity.junit import write_junit
from ckv_export.parity.localize import Divergence
from ckv_export.parity.page import page
from ckv_export.parity.report import ParityReport, plain
from ckv_export.parity.routing import ScoreErrors
from ckv_export.parity.schema import schema
from ckv_export.parity.steps import StepResult, StepsReport
from ckv_export.parity.tables import number, runtime_tables
from ckv_export.parity.tolerances import EXPLAINED_MARGIN, EXPLAINED_SELECTION

pytestmark = pytest.mark.usefixtures("one_thread")

FOUND = Divergence("decode", "c", "MatMul dnn/MatMul_0", "MatMul", "x", 0.5, 1e-5, "the twin")
NASTY = "<script>&'\""


@pytest.fixture(scope="module")
def report(exported: Callable[[str], Export]) -> ParityReport:
    """A right runtime and a wrong one, with everything a report can hold."""
    made = exported("sim")
    prefill, decode = made.torch_runners()

    def shift(arrays) -> None:
        arrays["score"] += np.float32(0.01)

    outcomes = []
    for name, wrong in (("right", False), ("wrong", True)):
        runner = Tampered(decode, outputs=shift) if wrong else decode
        outcome = judge(made.spec, prefill, runner, made.cases[wrong:])
        unproven = "" if wrong else NASTY
        outcomes.append(dataclasses.replace(outcome, name=name, unproven=unproven))
    scores = ScoreErrors(4, 1e-3, 1e-4, 1e-4, 9e-4)
    steps = StepsReport("c", 2, 3, 1, NASTY, (StepResult(4, 0, 1e-5, scores),) * 20)
    return ParityReport.of(
        manifest_of(made, "fp16"),
        made.cases,
        tuple(outcomes),
        {"tensorrt": NASTY},
        seed=3,
        truth=NASTY,
        inputs="users of a file",
        top=3,
        steps={"right": steps},
        localized={"wrong": FOUND, "right": NASTY},
    )


def test_data_follows_the_schema_and_the_schema_is_strict(report: ParityReport):
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(schema())
    validator.validate(data)
    told = [data[name] for name in ("precision", "truth", "inputs")]
    assert told == ["fp16", NASTY, "users of a file"]
    assert [r["ranking"]["top"] for r in data["runtimes"]] == [3, 3]
    (score,) = [t for t in data["runtimes"][1]["tensors"] if t["tensor"] == "score"]
    assert score["statistics"]["mean"] == pytest.approx(0.01, rel=1e-3)
    judged = [(r["name"], r["cases"], r["unproven"]) for r in data["runtimes"]]
    assert judged == [("right", data["cases"], NASTY), ("wrong", data["cases"] - 1, "")]
    assert data["runtimes"][1]["localized"]["node"] == FOUND.node
    assert len(data["runtimes"][0]["steps"]["steps"]) == 20
    assert data["runtimes"][0]["routing"]["layers"], "flips are told of each layer"
    for path in ("extra", "seed"):
        wrong = dict(data)
        wrong.pop(path, None) if path in wrong else wrong.update({path: 1})
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(wrong)


def test_numbers_that_are_none_become_null():
    found = plain({"a": [np.inf, float("nan"), 1.0], "b": (1, "x"), "c": None})
    assert found == {"a": [None, None, 1.0], "b": [1, "x"], "c": None}
    assert (number(None), number(0.00012345)) == ("-", "0.00012")


def test_junit_has_a_test_for_every_comparison(report: ParityReport, tmp_path: Path):
    write_junit(report, tmp_path / "report.xml")
    root = Xml.parse(tmp_path / "report.xml").getroot()
    suites = {suite.get("name"): suite for suite in root}
    assert set(suites) == {"right", "wrong", "tensorrt"}
    for outcome in report.outcomes:
        suite = suites[outcome.name]
        skipped = [s.get("message") for s in suite.findall("testcase/skipped")]
        assert skipped == [NASTY] * bool(outcome.unproven)
        assert int(suite.get("skipped")) == len(skipped)
        tests = len(outcome.results) + len(skipped)
        assert int(suite.get("tests")) == tests == len(suite.findall("testcase"))
        failed = suite.findall("testcase/failure")
        wrong = [r for r in outcome.results if not r.passed]
        assert int(suite.get("failures")) == len(failed) == len(wrong)
        assert [f.get("message") for f in failed] == [r.sentence() for r in wrong]
    assert suites["right"].get("failures") == "0"
    assert int(suites["wrong"].get("failures")) > 0
    not_run = suites["tensorrt"]
    assert [not_run.get(n) for n in ("tests", "failures", "skipped")] == ["1", "0", "1"]
    assert not_run.find("testcase/skipped").get("message") == NASTY


def test_page_shows_every_table_and_plot(report: ParityReport):
    text = page(report)
    assert text.count("<figure>") == 2 * 2 + 1, "margins of K and V twice, and the steps"
    assert f"users of a file, seed 3; model {report.fingerprint[:16]}, fp16." in text
    assert f"compared with {html.escape(NASTY)}." in text
    assert text.count("Not judged by 1 of the cases") == 1
    assert text.count(f"Not proven: {html.escape(NASTY)}.") == 1
    assert "<td>score</td><td>2e-06</td><td>0</td>" in text
    assert f"a margin below {EXPLAINED_MARGIN:g} excuses" in text
    assert f"within {EXPLAINED_SELECTION:g} of other" in text
    assert ">less<" in text
    worst, mean, user_part = ([y for _, y in line] for line in points(text))
    assert max(worst) < min(mean) <= max(mean) < min(user_part), "SVG counts from the top"
    for words in ("Routing", "Cost of flips", "Kendall tau", "AUC", FOUND.node, "20 requests"):
        assert words in text or words == "AUC"
    assert "<script" not in text
    assert not re.search(r"https?://|url\(|@import|\bsrc=|\bhref=", text)


def test_console_says_what_is_not_proven(report: ParityReport):
    for brief in (True, False):
        shown = [str(each) for each in parity_tables(report, brief) if isinstance(each, Text)]
        assert shown.count(f"Not proven: {NASTY}") == 1


def test_tables_have_as_many_cells_as_heads(report: ParityReport):
    for outcome in report.outcomes:
        tables = list(runtime_tables(report, outcome))
        assert len(tables) >= 4
        for table in tables:
            assert table.rows
            assert all(len(row) == len(table.heads) for row in table.rows)
    steps = list(runtime_tables(report, report.outcomes[0]))[-1]
    assert steps.rows[0][0] == "1"
    assert steps.rows[-1][0] == "20", "the last is always shown"


def points(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, p.split(","))) for p in found.split()]
        for found in re.findall(r'points="([^"]*)"', svg)
    ]


def test_lines_rise_where_errors_grow():
    svg = plots.lines("errors", "request", {"a": [1e-6, 1e-4, 1e-2], "b": [0.0, None, 1e-3]})
    a, b = points(svg)
    assert [x for x, _ in a] == sorted(x for x, _ in a)
    ys = [y for _, y in a]
    assert ys[0] > ys[1] > ys[2], "SVG counts from the top"
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2), "two decades each"
    assert len(b) == 1, "zero and nothing have no logarithm"


def test_bars_are_as_high_as_their_counts():
    svg = plots.bars("counts", ["x", "y"], {"few": [0, 1], "many": [99, 9999]})
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" fill', svg)][2:]
    assert heights[0] == 0.0
    assert heights[3] == pytest.approx(2 * heights[2], rel=0.01)
    assert 0 < heights[1] < heights[2]


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [None]}, {"a": [0.0]}])
def test_plots_of_nothing(series: dict):
    assert "<svg" in plots.lines(NASTY, NASTY, series)
    assert "<script" not in plots.lines(NASTY, NASTY, series)
    assert "<svg" in plots.bars(NASTY, [], {})

"""The outcome as data and as a page."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from ckv_export.parity.compare import compare_rows, compare_values
from ckv_export.parity.gate import EVERY_CASE, RuntimeResult
from ckv_export.parity.page import write_report
from ckv_export.parity.report import ParityReport, tensor_rows, tensors_of
from ckv_export.parity.schema import schema
from ckv_export.parity.tables import tensor_table
from ckv_export.parity.tolerances import EXPLAINED_MARGIN, TOLERANCES
from ckv_export.runtimes.base import RunnerMetadata

NASTY = "<script>alert(\"1\")</script> & 'x'"


def outcome(*results, runtime: str = "onnxruntime", device: str = "cpu") -> RuntimeResult:
    return RuntimeResult(RunnerMetadata(runtime, "1.2", device, "decode"), tuple(results))


def score(got: float, expected: float = 0.0, case: str = "one event", tensor: str = "score"):
    arrays = (np.array([[x]], np.float32) for x in (got, expected))
    return compare_values(case, tensor, *arrays, [TOLERANCES["score"]])


def rows(got: int, margin: float, tensor: str = "cache_k_index"):
    arrays = (np.array([[x, 5]], np.int32) for x in (got, 1))
    return compare_rows("one event", tensor, *arrays, np.array([[margin, 1.0]]))


def report(*outcomes: RuntimeResult, model: str = "toy", not_run: dict | None = None):
    return ParityReport(model, "ab" * 32, 7, 3, outcomes, not_run or {})


GOOD = outcome(rows(1, 1.0), rows(2, EXPLAINED_MARGIN / 2), score(0.5, 0.5), score(1e-6))
BAD = outcome(rows(2, 1.0), score(0.5), runtime="tensorrt")


def test_json_has_its_schema():
    data = report(GOOD, BAD, not_run={"tensorrt_rtx": "no GPU"}).to_dict()
    text = json.dumps(data, allow_nan=False)
    jsonschema.validate(json.loads(text), schema())
    assert (data["model"], data["seed"], data["cases"]) == ("toy", 7, 3)
    assert data["fingerprint"] == "ab" * 32
    assert data["passed"] is False
    assert data["explained_margin"] == EXPLAINED_MARGIN
    assert data["not_run"] == {"tensorrt_rtx": "no GPU"}
    assert set(data["tolerances"]) == set(TOLERANCES)
    good, bad = data["runtimes"]
    assert (good["runtime"], good["passed"], len(good["results"])) == ("onnxruntime", True, 4)
    assert (bad["runtime"], bad["passed"]) == ("tensorrt", False)


def test_passed_is_that_of_every_runtime():
    assert report(GOOD).passed
    assert report(GOOD).to_dict()["passed"] is True
    assert not report(BAD).passed
    assert not report(GOOD, BAD).passed
    assert not report(BAD, GOOD).passed


def test_summary_is_what_the_manifest_keeps():
    summary = report(GOOD, BAD).summary()
    assert summary["passed"] is False
    assert (summary["seed"], summary["cases"]) == (7, 3)
    assert summary["worst_score_error"] == {
        "onnxruntime": pytest.approx(1e-6), "tensorrt": pytest.approx(0.5)
    }  # fmt: skip
    assert json.loads(json.dumps(summary)) == summary


def test_rows_of_the_table():
    assert tensors_of(GOOD) == ["cache_k_index", "score"]

    def cells(of: RuntimeResult) -> list[tuple[str, ...]]:
        rows = tensor_table(of).rows
        return [(tensor, elements, worst, *rest[-2:]) for tensor, elements, worst, *rest in rows]

    assert cells(GOOD) == [
        ("cache_k_index", "4", "1 differ", "1", "ok"),
        ("score", "2", "1e-06", "", "ok"),
    ]
    assert cells(BAD) == [
        ("cache_k_index", "2", "1 differ", "0", "FAILED"),
        ("score", "1", "0.5", "", "FAILED"),
    ]


@pytest.mark.parametrize("got", [np.nan, np.inf])
def test_failure_without_a_number_is_json_all_the_same(got: float, tmp_path: Path):
    write_report(report(outcome(score(got))), tmp_path)

    def no_number(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    json.loads((tmp_path / "parity.json").read_text(), parse_constant=no_number)


def test_row_of_a_tensor_that_no_single_case_fails_by():
    """What is told of all cases fails it, and counts no element, excuse or error again."""
    near = np.ones((1, 1), bool)
    arrays = np.array([[0.3]], np.float32), np.array([[0.0]], np.float32)
    excused = [
        compare_values(f"case {n}", "score", *arrays, [TOLERANCES["score"]], None, near)
        for n in range(3)
    ]
    about_all = {"elements": 3, "explained": 3, "error": 1.0, "passed": False}
    judged = outcome(*excused, dataclasses.replace(excused[0], case=EVERY_CASE, **about_all))
    (row,) = tensor_rows(judged)
    assert (row.elements, row.excused, row.worst, row.passed) == (3, 3, 0.0, False)
    assert judged.worst("score") == 0.0


def test_rows_of_another_shape_have_their_line_in_the_table():
    arrays = (np.zeros(shape, np.int32) for shape in ((2, 1), (2, 3)))
    other = compare_rows("one event", "cache_k_index", *arrays, np.zeros((2, 3)))
    (row,) = tensor_rows(outcome(other))
    assert (row.tensor, row.passed) == ("cache_k_index", False)


# -- the page


class Page(html.parser.HTMLParser):
    """Tags, their attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def page(of: ParityReport, folder: Path) -> tuple[str, Page]:
    write_report(of, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["parity.html", "parity.json"]
    written = json.loads((folder / "parity.json").read_text())
    assert written == json.loads(json.dumps(of.to_dict()))
    text = (folder / "parity.html").read_text()
    return text, Page(text)


def test_page_tells_the_outcome(tmp_path: Path):
    _, shown = page(report(GOOD, BAD, not_run={"tensorrt_rtx": "no GPU here"}), tmp_path)
    for words in (
        "Parity of toy: FAILED", "3 cases, generated, seed 7", "ab" * 8, "onnxruntime 1.2, cpu",
        "tensorrt 1.2", "cache_k_index", "1 differ", "tensorrt_rtx", "no GPU here", "2e-06",
    ):  # fmt: skip
        assert words in shown.text
    assert f"First to diverge: {BAD.first_failure.sentence()}." in shown.text
    assert all(t.reason in shown.text for t in TOLERANCES.values())


def test_page_of_a_success(tmp_path: Path):
    _, shown = page(report(GOOD), tmp_path)
    assert "Parity of toy: ok" in shown.text
    assert "First to diverge" not in shown.text
    assert "FAILED" not in re.sub(r"(?s)<style>.*?</style>", "", shown.text.split("}")[-1])


def test_page_needs_nothing_else(tmp_path: Path):
    text, shown = page(report(GOOD, BAD), tmp_path)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(shown.tags)
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in shown.attributes}
    assert not re.search(r"https?://|url\(|@import", text)
    assert text.startswith("<!doctype html>")


def test_names_are_escaped_wherever_they_stand(tmp_path: Path):
    nasty = outcome(score(0.5, tensor=NASTY), score(0.5, case=NASTY), runtime=NASTY, device=NASTY)
    nasty = dataclasses.replace(
        nasty, runtime=dataclasses.replace(nasty.runtime, version="<b>1</b>")
    )
    text, shown = page(report(nasty, model=NASTY, not_run={NASTY: NASTY}), tmp_path)
    assert "<script" not in text
    assert "<b>" not in text
    assert shown.text.count(NASTY) >= 6
    assert NASTY in json.loads((tmp_path / "parity.json").read_text())["model"]


def test_names_beyond_ascii(tmp_path: Path):
    _, shown = page(report(GOOD, model="modèle 推荐"), tmp_path)
    assert "modèle 推荐" in shown.text
    raw = (tmp_path / "parity.html").read_bytes()
    assert "modèle 推荐".encode() in raw
    assert b"charset=utf-8" in raw

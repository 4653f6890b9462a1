"""Which case a fault is looked for in, what its graph is fed, and what is said where none is found.

The graphs are stand-ins that find nothing; tests/parity/test_localize.py has real ones.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ckv_testing.judging import drawn

from ckv_export.contract import FEATURES, GraphSpec, TensorSpec
from ckv_export.parity import fault
from ckv_export.parity.compare import TensorResult
from ckv_export.parity.fault import Believed, localize, unoptimised
from ckv_export.parity.gate import EVERY_CASE, RuntimeResult, judge
from ckv_export.parity.replay import chunks

pytestmark = pytest.mark.usefixtures("one_thread")

POOLS = {"a pool": np.zeros(1)}
EXCUSED = {"logits": np.zeros(1)}


@pytest.fixture(scope="module")
def judged() -> tuple[Any, RuntimeResult]:
    """What stands for the manifest of a layered model, and a verdict on three of its cases."""
    spec, runners, cases = drawn("hstu")
    graphs = dict(zip(("prefill", "decode"), (r.io for r in runners), strict=True))
    manifest = SimpleNamespace(model=spec, precision="fp16", form=FEATURES, graph=graphs.get)
    return manifest, judge(spec, *runners, cases)


class Seen:
    """What was asked of the stand-ins, in order."""

    def __init__(self) -> None:
        self.probes: list[tuple[Any, ...]] = []
        self.excused: list[tuple[Any, ...]] = []
        self.searches: list[tuple[Any, ...]] = []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Seen:
    seen = Seen()

    def probe(path: Path, optimised: bool = True, precision: str = "fp32") -> str:
        seen.probes.append((path, optimised, precision))
        return path.name

    def excused_logits(*given: Any) -> dict[str, np.ndarray]:
        seen.excused.append(given)
        return EXCUSED

    def localizer(*given: Any) -> SimpleNamespace:
        return SimpleNamespace(first=lambda *feeds: seen.searches.append(feeds))

    monkeypatch.setattr(fault, "GraphProbe", probe)
    monkeypatch.setattr(fault, "excused_logits", excused_logits)
    monkeypatch.setattr(fault, "Localizer", localizer)
    monkeypatch.setattr(fault, "load_pools", lambda *_: POOLS)
    for name in ("prefill", "decode"):
        (tmp_path / f"{name}.onnx").touch()
    return seen


def failure(case: str, tensor: str, **more: Any) -> TensorResult:
    return TensorResult(case, tensor, 4, 1.0, 0.5, None, 0, None, False, **more)


def located(judged, folder: Path, *results: TensorResult, **more: Any) -> str:
    manifest, outcome = judged
    outcome = dataclasses.replace(outcome, results=results or outcome.results, **more)
    told = localize(folder, manifest, outcome, Believed(folder, "the twin", {}), None)
    assert isinstance(told, str)
    return told


@pytest.mark.parametrize(
    ("tensor", "chunked", "graph"),
    [("cache_k_user", False, "prefill"), ("cache_k_user", True, "prefill"),
     ("append_k_user", False, "decode"), ("score", False, "decode")],
)  # fmt: skip
def test_the_graph_that_made_a_result_is_fed_as_it_was(
    tensor: str, chunked: bool, graph: str, judged, seen: Seen, tmp_path: Path
):
    *runs, run = judged[1].runs
    apart = {n: a + 1 if n.endswith("_user") else a for n, a in run.chunked.items()}
    run = dataclasses.replace(run, chunked=apart)
    case, name = run.case, run.case.case.name
    failed = failure(name + ", prefill in two chunks" * chunked, tensor)
    told = located(judged, tmp_path, failed, runs=(*runs, run))
    assert told.startswith(f"{graph}: in case {name!r} no tensor differs from the twin")
    ((feeds, truth_feeds, given),) = seen.searches
    assert given is EXCUSED
    assert set(feeds) - set(truth_feeds) == set(POOLS)
    (asked,) = seen.excused
    if graph == "decode":
        np.testing.assert_array_equal(feeds["cache_k_user"], apart["cache_k_user"])
        candidates = case.outputs["score"].shape[1]
    else:
        cut, events = chunks(case)[1].start * chunked, case.case.cached
        assert feeds["event_mask"].shape[1] == events - cut
        assert feeds["past_mask"].shape[1] == cut
        candidates = 0
    assert asked[:2] == (f"{graph}.onnx", f"{graph}.onnx")
    assert asked[-2:] == ("fp16", candidates)
    path = tmp_path / f"{graph}.onnx"
    assert seen.probes == [(path, True, "fp16"), (path, True, "fp32")]


def test_the_graph_of_an_item_table_is_fed_the_table(judged, seen: Seen, tmp_path: Path):
    manifest, outcome = judged
    inputs = (TensorSpec("append_mask", "bool", ("B", "T")), TensorSpec("table_x", "int32", ("I",)))
    manifest = SimpleNamespace(
        model=manifest.model,
        precision="fp32",
        form=FEATURES,
        graph={"decode_items": GraphSpec("decode_items", inputs, ())}.get,
    )
    (tmp_path / "decode_items.onnx").touch()
    case = outcome.runs[1].case.case
    failed = (failure(f"{case.name}, by item table", "score"),)
    table = {"table_x": np.arange(3)}
    outcome = dataclasses.replace(outcome, results=failed)
    told = localize(tmp_path, manifest, outcome, Believed(tmp_path, "the twin", {}), table)
    assert str(told).startswith(f"decode_items: in case {case.name!r} no tensor")
    ((feeds, _, _),) = seen.searches
    assert feeds["table_x"] is table["table_x"]
    assert feeds["append_mask"] is case.inputs["append_mask"]
    assert seen.excused[0][-1] == 0, "it routes no candidates"


def test_flips_are_looked_for_where_too_many_of_them_are_the_failure(
    judged, seen: Seen, tmp_path: Path
):
    name = judged[1].runs[0].case.case.name
    some = dataclasses.replace(failure(name, "append_k_index"), passed=True, explained=3)
    over_all = dataclasses.replace(some, case=EVERY_CASE, passed=False)
    for failed, searches in (
        (over_all, 2),
        (dataclasses.replace(over_all, explained=0), 1),
        (dataclasses.replace(some, passed=False), 1),
    ):
        seen.searches.clear()
        located(judged, tmp_path, some, failed)
        assert [len(feeds) for feeds in seen.searches] == [3, 2][:searches]


@pytest.mark.parametrize("what", ["passed", "too many excused", "off on average"])
def test_the_case_that_tells_most_is_looked_into(what: str, judged, seen: Seen, tmp_path: Path):
    """Where nothing failed, that which is nearest to failing, not that of the largest error."""
    names = [run.case.case.name for run in judged[1].runs]
    base = dataclasses.replace(failure("", "score"), passed=True)
    results = [
        dataclasses.replace(base, case=names[0], error=0.9, allowed=9.0),
        dataclasses.replace(base, case=names[1], explained=2, mean=0.1, allowed=0.0, error=0.0),
        dataclasses.replace(base, case=names[2], explained=1, mean=0.2, error=0.4),
    ]
    over_all = failure(EVERY_CASE, "score")
    if what == "too many excused":
        results.append(dataclasses.replace(over_all, explained=3))
    elif what == "off on average":
        results.append(over_all)
    told = located(judged, tmp_path, *results)
    assert repr(names[1 if what == "too many excused" else 2]) in told


def test_a_case_is_not_another_whose_name_begins_alike(judged, seen: Seen, tmp_path: Path):
    first, second, _ = judged[1].runs
    longer = f"{first.case.case.name}, one appended"
    case = dataclasses.replace(second.case.case, name=longer)
    second = dataclasses.replace(second, case=dataclasses.replace(second.case, case=case))
    assert repr(longer) in located(judged, tmp_path, failure(longer, "score"), runs=(first, second))


def test_nothing_to_look_into(judged, seen: Seen, tmp_path: Path):
    assert "nothing was compared" in located(judged, tmp_path, runs=())
    (tmp_path / "decode.onnx").unlink()
    assert "was exported without such a graph" in located(judged, tmp_path)
    assert not seen.searches


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "tensorrt"])
@pytest.mark.parametrize("twin", [True, False])
def test_who_is_to_blame_where_no_node_is(
    name: str, twin: bool, judged, seen: Seen, tmp_path: Path
):
    """Another graph clears the file; the file itself can't, and only of this runtime."""
    manifest, outcome = judged
    believed = Believed(tmp_path, "the twin", {}) if twin else unoptimised(tmp_path, manifest)
    assert (believed.optimised, believed.precision) == ((True, "fp32") if twin else (False, "fp16"))
    assert believed.pools == ({} if twin else POOLS)
    failed = (failure(outcome.runs[0].case.case.name, "score"),)
    told = localize(
        tmp_path, manifest, dataclasses.replace(outcome, results=failed, name=name), believed, None
    )
    runs_wrongly = f"{name} runs it wrongly"
    assert ("the file is right" in told) == twin
    assert ("--checkpoint or --against" in told) == (not twin)
    assert (runs_wrongly in told) == (twin or name == "tensorrt")
    passed = localize(tmp_path, manifest, outcome, believed, None)
    assert passed.endswith("by more than rounding")

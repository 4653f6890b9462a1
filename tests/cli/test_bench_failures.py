"""``ckv-export bench`` where a way fails, or answers wrongly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ckv_testing.results import QUICK, SCHEMA

from ckv_export.bench import roster, run
from ckv_export.bench.ways import Way
from ckv_export.errors import EngineError, ExportError, ParityFailure
from ckv_export.runtimes.base import Runner, RunnerMetadata


class Choosy(Runner):
    """A decode that refuses some sizes, as an engine does, or has no room for them."""

    def __init__(self, inner: Runner, refused: tuple[int, ...] = (), candidates: int = 0) -> None:
        super().__init__(inner.io)
        self.inner, self.refused, self.candidates = inner, refused, candidates

    def _activate(self) -> None:
        if not self.inner.active:
            self.inner.activate()

    def _deactivate(self) -> None:
        pass

    def _infer(self, feeds: Any) -> Any:
        events = feeds["history_mask"].shape[1]
        if events in self.refused:
            raise EngineError(f"not built for {events} events")
        if feeds["candidate_item_id"].shape[1] == self.candidates:
            raise EngineError(f"not built for {self.candidates} candidates")
        return self.inner.infer(feeds)

    def _describe(self) -> RunnerMetadata:
        return self.inner.metadata()


class Small(Choosy):
    """A device that has no room for what is held of some histories, and never computes."""

    def _place(self, arrays: Any) -> Any:
        events = arrays["cache_k_user"].shape[2]
        if events in self.refused:
            raise ExportError(f"not built for {events} events")
        return super()._place(arrays)

    def _infer(self, feeds: Any) -> Any:
        assert feeds["cache_k_user"].shape[2] not in self.refused
        return self.inner.infer(feeds)


def only_other_way(monkeypatch: pytest.MonkeyPatch, make: Callable[[Way], Way]) -> None:
    """Of the ways that need a checkpoint one alone, "choosy", made of the bundle's first."""

    def ways(weights: Any, first: Way, *_: Any) -> list[Way]:
        return [dataclasses.replace(make(first), name="choosy", runners=[])]

    monkeypatch.setattr(roster, "weighted_ways", ways)


@pytest.mark.parametrize("kind", [Choosy, Small])
@pytest.mark.parametrize(
    ("refused_events", "left_out"),
    [
        ((5,), {"choosy at history 5": "not built for 5 events"}),
        ((2,), {"choosy in traffic": "not built for 2 events"}),
        ((12,), {"choosy": "not built for 12 events"}),
    ],
    ids=["in a sweep", "in traffic", "at all"],
)
def test_a_way_that_fails_is_left_out_where_it_does(
    cli: Any,
    bundle: Path,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused_events: tuple[int, ...],
    left_out: dict[str, str],
    kind: type[Choosy],
):
    def choosy(first: Way) -> Way:
        cache = "full, held" if kind is Small else first.cache
        return dataclasses.replace(first, cache=cache, decode=kind(first.decode, refused_events))

    only_other_way(monkeypatch, choosy)
    file = tmp_path / "result.json"
    words = ("--only", "choosy", "--sweep", "history=0,5", "--traffic", "40", "--phases", "request")
    ran = cli("bench", bundle, *QUICK, "--checkpoint", run_folder, *words, "--json", file)
    assert ran.code == 0, ran.err
    measured = json.loads(file.read_text())
    jsonschema.validate(measured, SCHEMA)
    reasons = {w["name"]: w["reason"] for w in measured["left_out"]}
    assert {n: r for n, r in reasons.items() if n.startswith("choosy")} == left_out
    (where,) = left_out
    here = {"choosy"} - set(left_out)
    names = [{w["name"] for w in p["ways"]} for p in measured["sweep"]]
    wanted = [here, here - ({"choosy"} if "history 5" in where else set())]
    assert [n - {"ONNX Runtime, compact cache"} for n in names] == wanted
    assert {w["name"] for w in measured["ways"]} >= here
    in_traffic = {w["name"] for w in measured["traffic"]["ways"]}
    assert ("choosy" in in_traffic) == (here != set() and "traffic" not in where)


def test_what_is_compiled_for_one_shape_has_no_part_in_traffic(
    cli: Any, bundle: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def compiled(weights: Any, first: Way, *_: Any) -> list[Way]:
        decode = Small(first.decode, (2,))
        named = {"name": "torch.compile", "cache": "full, held", "decode": decode, "runners": []}
        return [dataclasses.replace(first, **named)]

    monkeypatch.setattr(roster, "weighted_ways", compiled)
    file = tmp_path / "result.json"
    words = ("--only", "torch.compile", "--traffic", "40", "--phases", "request", "--json", file)
    ran = cli("bench", bundle, *QUICK, "--checkpoint", run_folder, *words)
    assert ran.code == 0, ran.err
    measured = json.loads(file.read_text())
    assert [way["name"] for way in measured["ways"]][1:] == ["torch.compile"]
    assert [way["name"] for way in measured["traffic"]["ways"]] == ["ONNX Runtime, compact cache"]
    assert not [w for w in measured["left_out"] if w["name"].endswith("in traffic")]


def test_where_the_first_way_has_no_room_nothing_is_measured(
    refused: Callable[..., str], bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(shape: tuple[int, ...], dtype: Any) -> Any:
        raise ExportError("can't pin so much")

    monkeypatch.setattr("ckv_export.bench.run.require_gpu", lambda: None)
    monkeypatch.setattr("ckv_export.bench.pinned.zeros", full)
    words = ("bench", bundle, *QUICK, "--source", "pinned")
    refused(*words, watched=bundle, says=("can't pin so much",))


class Absent(Choosy):
    """What this machine can't load."""

    def _activate(self) -> None:
        raise EngineError("not here")


class NoRoom(Choosy):
    """A device that has no room for what is held, and computes what is fetched."""

    def _place(self, arrays: Any) -> Any:
        raise ExportError("no room")


def test_a_way_that_is_left_out_closes_no_graph_of_another(
    cli: Any, bundle: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: list[Runner] = []

    def pair(weights: Any, first: Way, *_: Any) -> list[Way]:
        made.append(NoRoom(first.decode))
        decodes = {"full, held": made[0], "full, fetched": made[0], "none": Absent(first.decode)}
        return [
            dataclasses.replace(first, name=cache, cache=cache, decode=decode, runners=[])
            for cache, decode in decodes.items()
        ]

    monkeypatch.setattr(roster, "weighted_ways", pair)
    file = tmp_path / "result.json"
    words = ("--phases", "request", "--json", file)
    ran = cli("bench", bundle, *QUICK, "--checkpoint", run_folder, *words)
    assert ran.code == 0, ran.err
    measured = json.loads(file.read_text())
    reasons = {way["name"]: way["reason"] for way in measured["left_out"]}
    assert (reasons["full, held"], reasons["none"]) == ("no room", "not here")
    assert measured["ways"][-1]["name"] == "full, fetched"
    assert not made[0].active


def test_a_phase_that_a_way_has_not_is_left_out_alone(
    cli: Any, bundle: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Appending asks for one candidate, which an engine may not have been built for."""
    only_other_way(
        monkeypatch,
        lambda first: dataclasses.replace(first, decode=Choosy(first.decode, candidates=1)),
    )
    file = tmp_path / "result.json"
    words = ("--only", "choosy", "--sweep", "history=3", "--json", file)
    ran = cli("bench", bundle, *QUICK, "--checkpoint", run_folder, *words)
    assert ran.code == 0, ran.err
    measured = json.loads(file.read_text())
    first, way = measured["ways"]
    assert set(first["phases"]) - set(way["phases"]) == {"append"}
    assert {"decode", "request"} < set(way["phases"])
    found = [(w["name"], w["reason"]) for w in measured["left_out"] if "choosy" in w["name"]]
    names = ["choosy, append", "choosy, append at history 3"]
    assert found == [(name, "not built for 1 candidates") for name in names]


def test_a_phase_that_no_way_has_is_left_out(
    cli: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = run.bundle_ways

    def ways(*given: Any) -> Any:
        (first, *_), left_out = real(*given)
        return [dataclasses.replace(first, decode=Choosy(first.decode, candidates=1))], left_out

    monkeypatch.setattr(run, "bundle_ways", ways)
    file = tmp_path / "result.json"
    ran = cli("bench", bundle, *QUICK, "--phases", "append,decode", "--json", file)
    assert ran.code == 0, ran.err
    measured = json.loads(file.read_text())
    assert [set(way["phases"]) for way in measured["ways"]] == [{"decode"}]
    assert "ONNX Runtime, compact cache, append" in [w["name"] for w in measured["left_out"]]


def test_wrong_scores_are_not_timed(
    bundle: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
):
    truth = roster.reference_scores
    monkeypatch.setattr(roster, "reference_scores", lambda *a: truth(*a) + 1e-4)
    monkeypatch.setattr(roster, "weighted_ways", lambda *a: [])
    ran = cli("bench", bundle, *QUICK, "--checkpoint", run_folder)
    assert ran.code == ParityFailure.exit_code
    assert "what is wrong is not timed" in ran.err

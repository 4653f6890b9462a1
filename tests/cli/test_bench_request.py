"""What a request of a benchmark says reaches what it is said of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckv_export.bench import roster, run
from ckv_export.bench.measure import Settings
from ckv_export.bench.rate import RateFound
from ckv_export.bench.request import BenchRequest
from ckv_export.bench.stored import Store
from ckv_export.bench.traffic import buckets, padding_waste
from ckv_export.bench.ways import PHASES, LeftOut, Way
from ckv_export.bench.workload import Sizes
from ckv_export.errors import InputError
from ckv_export.manifest import read_manifest
from ckv_export.runtimes.base import Runner, RunnerMetadata
from ckv_export.stages import Stages

FIRST, OTHER = "ONNX Runtime, compact cache", "on cuda"


class Recorded(Runner):
    """Another's decode; `events`: of each call, those that are no padding."""

    off = np.float32(0)
    """What its scores are wrong by."""

    def __init__(self, inner: Runner) -> None:
        super().__init__(inner.io)
        self.inner, self.events = inner, list[int]()

    def _activate(self) -> None: ...

    def _deactivate(self) -> None: ...

    def _infer(self, feeds: Any) -> Any:
        self.events.append(int(feeds["history_mask"].sum()))
        outputs = self.inner.infer(feeds)
        return outputs | {"score": outputs["score"] + self.off}

    def _describe(self) -> RunnerMetadata:
        return self.inner.metadata()


class Calls:
    """What the parts of a benchmark were called with; those that take long are stand-ins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: dict[str, tuple[Any, ...]] = {}
        self.stored: list[int] = []
        self.rates = iter([RateFound(0.25, 7.0, ()), RateFound(0.25, 0.0, (), tried=False)])
        self.generator: dict[str, Any] = {}
        self.decode: Recorded | None = None
        self.real = {name: getattr(run, name) for name in ("bundle_ways", "draw_request")}
        self.real["load_weights"] = roster.load_weights
        for name in ("keep_freed_memory", "bundle_ways", "cuda_ways"):
            monkeypatch.setattr(run, name, getattr(self, name))
        monkeypatch.setattr(run, "draw_request", self.draw_request)
        monkeypatch.setattr(run, "highest_rate", self.highest_rate)
        monkeypatch.setattr(run, "Store", self.store)
        for name in ("load_weights", "weighted_ways", "without_training_code"):
            monkeypatch.setattr(roster, name, getattr(self, name))

    def keep_freed_memory(self) -> None:
        self.given["keep_freed_memory"] = ()

    def load_weights(self, path: Path, manifest: Any, *names: str | None) -> Any:
        self.given["load_weights"] = names
        return self.real["load_weights"](path, manifest)

    def bundle_ways(self, bundle: Any, *given: Any) -> Any:
        self.given["bundle_ways"] = given
        return self.real["bundle_ways"](bundle, *given)

    def weighted_ways(self, weights: Any, first: Way, scratch: Path, *given: Any) -> list[Way]:
        self.given["weighted_ways"] = (first.name, *given)
        return []

    def cuda_ways(self, weights: Any, first: Way, scratch: Path, *given: Any) -> Any:
        self.given["cuda_ways"] = (first.name, *given)
        self.decode = Recorded(first.decode)
        way = dataclasses.replace(first, name=OTHER, decode=self.decode, runners=[])
        return [way], [LeftOut("CUDA graphs", "no capture")]

    def without_training_code(self, spec: Any) -> list[LeftOut]:
        return [LeftOut("as trained", f"{spec.kind} can't")]

    def draw_request(self, *given: Any) -> Any:
        (rng,) = (each for each in given if isinstance(each, np.random.Generator))
        self.generator = self.generator or rng.bit_generator.state
        return self.real["draw_request"](*given)

    def highest_rate(self, call: Any, *given: Any) -> RateFound:
        self.given["highest_rate"] = given
        return next(self.rates)

    def store(self, blobs: Sequence[bytes]) -> Store:
        self.stored.append(sum(map(len, blobs)))
        return Store(blobs)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def test_options_become_the_request(cli: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[BenchRequest] = []

    def take(request: BenchRequest, stages: Stages, environment: Mapping[str, Any]) -> None:
        asked.append(request)
        raise InputError("taken")

    monkeypatch.setattr("ckv_export.cli.bench.run_bench", take)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    words = (
        "--checkpoint c --weights w --params p --beside b --beside bb --batch 2 --history 0 "
        "--appended 0 --candidates 4 --threads 3 --phases decode,request --only x --seed 5 "
        "--seconds 8 --stable 4 --latency-bound 50 --rate-seconds 6 --traffic 7 --sweep batch=1,2 "
        "--source file --stored fp16"
    )
    for given in ("", words):
        assert cli("bench", bundle, *given.split()).sentence() == "taken"
    longest = read_manifest(bundle).model.max_len
    assert asked == [
        BenchRequest(bundle, Sizes(1, longest, 1, 100), phases=list(PHASES), beside=[]),
        BenchRequest(
            bundle,
            Sizes(2, 0, 0, 4),
            *(Path("c"), "w", "p"),
            threads=3,
            settings=Settings(seconds=8, tolerance=0.04),
            phases=["decode", "request"],
            bound=0.05,
            rate_seconds=6,
            traffic=7,
            sweep={"batch": [1, 2]},
            source="file",
            floats="fp16",
            seed=5,
            only="x",
            beside=[Path("b"), Path("bb")],
        ),
    ]


def test_all_that_is_asked_for_is_done(
    bundle: Path, run_folder: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Recorded, "off", np.float32(0.005))
    request = BenchRequest(
        bundle,
        Sizes(1, 12, 1, 5),
        run_folder,
        weights="w",
        params="p",
        threads=2,
        settings=Settings(warmup=0, window=6, seconds=1e-9),
        phases=("decode",),
        bound=0.25,
        rate_seconds=0.5,
        floats="fp16",
        seed=7,
        only=OTHER,
    )
    stages = Stages()
    here = {"made": "up"}
    measured = run.run_bench(request, stages, here)
    assert measured["environment"] == here
    assert calls.given == {
        "keep_freed_memory": (),
        "load_weights": ("w", "p"),
        "bundle_ways": (2, "fp16"),
        "weighted_ways": (FIRST, 2, "fp16"),
        "cuda_ways": (FIRST, "fp16"),
        "highest_rate": (0.25, 0.5, 7),
    }
    assert calls.generator == np.random.default_rng(7).bit_generator.state
    assert [(way["name"], set(way["phases"])) for way in measured["ways"]] == [
        (FIRST, {"decode"}),
        (OTHER, {"decode"}),
    ]
    assert [way["phases"]["decode"]["calls"] for way in measured["ways"]] == [6, 6]
    left_out = {w["name"]: w["reason"] for w in measured["left_out"]}
    assert left_out["CUDA graphs"] == "no capture"
    assert left_out["as trained"] == "sim can't"
    # Compared as scores of half precision are.
    errors = [way["worst_score_error"] for way in measured["ways"]]
    assert 2e-6 < errors[0] < 0.004 < errors[1] < 0.02
    assert [way["rate"]["requests_per_second"] for way in measured["ways"]] == [7.0, None]
    remarks = {stage.title: stage.remark for stage in stages.finished}
    assert remarks["load runtimes"] == f"2 ways, {len(left_out)} left out"
    assert remarks["check scores"] == f"worst difference {errors[1]:.1e}"
    first = measured["ways"][0]["phases"]["decode"]["p50_ms"]
    assert remarks["measure: decode"] == f"2 ways; first p50 {first:.2f} ms"
    assert remarks[f"rate: {FIRST}"] == "7.0 requests/s within 250 ms"
    assert remarks[f"rate: {OTHER}"] == "no rate low enough to be within 250 ms could be tried"


def test_traffic_serves_every_request_in_turn(bundle: Path, run_folder: Path, calls: Calls):
    settings = Settings(warmup=0, window=2, seconds=1e-9)
    request = BenchRequest(
        bundle, Sizes(1, 9, 1, 5), run_folder, settings=settings, phases=(), traffic=6
    )
    traffic = run.run_bench(request, Stages(), {})["traffic"]
    lengths = traffic["lengths"]
    assert max(lengths) <= 9
    assert traffic["buckets"] == list(buckets(9))
    assert traffic["waste"] == padding_waste(lengths, buckets(9)).to_dict()
    assert [way["request"]["calls"] for way in traffic["ways"]] == [len(lengths)] * 3 == [6] * 3
    assert calls.decode is not None
    assert calls.decode.events[-6:] == lengths
    # Padding is not stored.
    kept = read_manifest(bundle).model.cached_events(9)
    each = calls.stored[0] // kept
    assert calls.stored[-12:] == [each * min(n, kept) for n in lengths for _ in range(2)]

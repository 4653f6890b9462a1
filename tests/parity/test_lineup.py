"""Who can run a bundle here, and why others can't."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ckv_testing import hstu_models
from ckv_testing.bundles import manifest_of
from ckv_testing.draw import make_spec
from ckv_testing.exports import Export
from ckv_testing.runs import Tampered

from ckv_export.contract import Profile
from ckv_export.errors import EngineError, ExportError, InputError
from ckv_export.manifest import EngineEntry, Manifest
from ckv_export.parity.bundle import judge_lineup
from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.inputs import Case
from ckv_export.parity.lineup import (
    Contender,
    Lineup,
    line_up,
    onnxruntime_runners,
    restricted,
)
from ckv_export.parity.page import page
from ckv_export.parity.report import ParityReport
from ckv_export.runtimes import onnxruntime as ort
from ckv_export.runtimes.bf16 import RoundedBf16Runner
from ckv_export.stages import Stages

Exported = Callable[[str], Export]


class FakeOrt:
    """An onnxruntime that offers `offered` and whose sessions really run on `used`."""

    __version__ = "9.9"

    def __init__(self, offered: Sequence[str], used: Sequence[str]) -> None:
        self.offered, self.used = offered, used
        self.asked: list[Any] = []
        self.SessionOptions = lambda: SimpleNamespace(add_session_config_entry=lambda *_: None)

    def get_available_providers(self) -> list[str]:
        return list(self.offered)

    def InferenceSession(self, path: str, options: Any, providers: list[Any]) -> Any:  # noqa: N802
        self.asked = providers
        return SimpleNamespace(get_providers=lambda: list(self.used))


@pytest.fixture
def made(exported: Exported) -> Export:
    return exported("sim")


@pytest.fixture
def manifest(made: Export) -> Manifest:
    return manifest_of(made)


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeOrt) -> FakeOrt:
    monkeypatch.setattr(ort, "load_module", lambda: fake)
    return fake


def test_this_machine_has_onnxruntime_on_the_cpu(made: Export, manifest: Manifest):
    lineup = line_up(made.folder, manifest)
    assert "onnxruntime-cpu" in [c.name for c in lineup.contenders]
    assert lineup.not_run["pytorch"].endswith("--checkpoint MODEL")
    for backend in ("tensorrt", "tensorrt_rtx"):
        told = lineup.not_run[backend]
        assert f"ckv-export build {made.folder} --backend {backend}" in told
    assert all("\n" not in why for why in lineup.not_run.values())


def test_providers_that_onnxruntime_offers(made, manifest, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, FakeOrt([ort.CUDA, ort.CPU], [ort.CPU]))
    lineup = line_up(made.folder, manifest)
    assert [c.name for c in lineup.contenders] == ["onnxruntime-cpu", "onnxruntime-cuda"]
    assert "ckv-export[gpu]" in lineup.not_run["onnxruntime-tensorrt"]


@pytest.mark.parametrize(
    ("precision", "provider", "kind"),
    [
        ("bf16", ort.CPU, RoundedBf16Runner),
        ("bf16", ort.CUDA, ort.OnnxRuntimeRunner),
        ("fp16", ort.CPU, ort.OnnxRuntimeRunner),
    ],
)
def test_bf16_is_rounded_where_there_are_no_products_of_it(
    precision: str, provider: str, kind: type, made
):
    """There alone: elsewhere what would be judged is not what a server computes."""
    runners = onnxruntime_runners(made.folder, manifest_of(made, precision), provider)
    assert {type(runner.runner) for runner in runners} == {kind}


def test_provider_that_falls_back_is_noticed(made, monkeypatch: pytest.MonkeyPatch):
    """onnxruntime-gpu without a GPU offers CUDA, warns, and runs on the CPU."""
    fake = use(monkeypatch, FakeOrt([ort.CUDA, ort.CPU], [ort.CPU]))
    runner = ort.OnnxRuntimeRunner(made.folder / "decode.onnx", made.graphs()[1].io, ort.CUDA)
    with pytest.raises(ExportError, match="fell back to CPUExecutionProvider"):
        runner.activate()
    assert fake.asked == [(ort.CUDA, {"use_tf32": "0"})], "TF32 flips router rows"
    fake.used = [ort.CUDA, ort.CPU]
    runner.activate()


def test_fallback_is_reported_as_not_run(made, manifest, monkeypatch: pytest.MonkeyPatch):
    fake = use(monkeypatch, FakeOrt([ort.CUDA], [ort.CPU]))
    lineup = line_up(made.folder, manifest)
    only = Lineup(tuple(c for c in lineup.contenders if c.name == "onnxruntime-cuda"), {})
    stages = Stages()
    outcomes, not_run = judge_lineup(made.folder, manifest, made.cases, only, False, stages)
    assert outcomes == ()
    assert "fell back" in not_run["onnxruntime-cuda"]
    assert stages.finished[-1].remark == not_run["onnxruntime-cuda"]
    with pytest.raises(InputError, match=r"onnxruntime-cuda can't run here: .*fell back"):
        judge_lineup(made.folder, manifest, made.cases, only, True, Stages())
    assert fake.asked


def test_restricted_to_names(made, manifest):
    lineup = line_up(made.folder, manifest)
    kept = restricted(lineup, ["onnxruntime-cpu", "onnxruntime-cpu"])
    assert [c.name for c in kept.contenders] == ["onnxruntime-cpu"]
    assert kept.not_run == {}
    with pytest.raises(InputError, match="pytorch can't run here: no checkpoint"):
        restricted(lineup, ["pytorch"])
    with pytest.raises(InputError, match=r"a runtime is one of .*, got 'onnxruntime-cpo'"):
        restricted(lineup, ["onnxruntime-cpo"])


def engine(graph: str, backend: str, target: str, profile: dict[str, str]) -> EngineEntry:
    entry = {
        "graph": graph, "file": f"engines/{graph}.{target}.engine", "backend": backend,
        "backend_version": "1", "targets": (target,), "profile": profile, "layers": 1,
        "seconds": 1.0,
    }  # fmt: skip
    names = {f.name for f in dataclasses.fields(EngineEntry)}
    return EngineEntry(**{n: v for n, v in entry.items() if n in names})


def test_engines_need_every_graph_and_a_gpu(made, manifest, monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("ckv_export.parity.lineup.load", lambda name: name)
    ranges = {"B": "1:2:3"}
    both = tuple(engine(g, "tensorrt_rtx", "sm86", ranges) for g in ("prefill", "decode"))
    one = engine("prefill", "tensorrt", "sm86", ranges)
    built = dataclasses.replace(manifest, engines=(*both, one))
    lineup = line_up(made.folder, built)
    assert "GPU" in lineup.not_run["tensorrt_rtx"]
    assert "no tensorrt engine of every graph" in lineup.not_run["tensorrt"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("ckv_export.parity.lineup.present_gpu", lambda: "sm86")
    lineup = line_up(made.folder, built)
    assert lineup.contenders[-1].name == "tensorrt_rtx sm86"
    assert restricted(lineup, ["tensorrt_rtx"]).contenders == lineup.contenders[-1:]

    def missing(name: str) -> None:
        raise EngineError(f"{name} is not installed")

    monkeypatch.setattr("ckv_export.parity.lineup.load", missing)
    assert line_up(made.folder, built).not_run["tensorrt_rtx"] == "tensorrt_rtx is not installed"


def test_engines_with_and_without_a_plugin_are_both_judged(made, manifest, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("ckv_export.parity.lineup.present_gpu", lambda: "sm89")
    monkeypatch.setattr("ckv_export.parity.lineup.load", lambda name: name)
    ranges, targets = {"B": "1:2:3"}, ("sm86", "sm89")
    plain = [
        dataclasses.replace(engine(g, "tensorrt", "sm86", ranges), targets=targets)
        for g in ("prefill", "decode")
    ]
    library = [
        dataclasses.replace(e, plugin={"kind": "library"}, profiles=(ranges, {"B": "4:5:6"}))
        for e in plain
    ]
    built = dataclasses.replace(manifest, engines=(*plain, *library))
    both = restricted(line_up(made.folder, built), ["tensorrt"]).contenders
    assert [c.name for c in both] == ["tensorrt sm86-sm89", "tensorrt sm86-sm89, library plugin"]
    assert [len(graph) for c in both for graph in c.profiles] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("gpu", "kept", "others"),
    [
        ("sm86", ["sm86"], {"sm120": "built for sm120, the GPU here is sm86"}),
        ("sm120", ["sm120"], {"sm86": "built for sm86, the GPU here is sm120"}),
        # Each says itself what it lacks.
        ("sm89", ["sm86", "sm120"], {}),
    ],
)
def test_engines_for_other_gpus_are_left_out(gpu, kept, others, made, manifest, monkeypatch):
    """Also of what was asked for by name: one set of the library runs."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("ckv_export.parity.lineup.present_gpu", lambda: gpu)
    monkeypatch.setattr("ckv_export.parity.lineup.load", lambda name: name)
    engines = tuple(
        engine(graph, "tensorrt_rtx", target, {"B": "1:2:3"})
        for target in ("sm86", "sm120")
        for graph in ("prefill", "decode")
    )
    built = dataclasses.replace(manifest, engines=engines)
    found = restricted(line_up(made.folder, built), ["tensorrt_rtx"])
    assert [c.name for c in found.contenders] == [f"tensorrt_rtx {target}" for target in kept]
    assert found.not_run == {f"tensorrt_rtx {target}": why for target, why in others.items()}


def thirty() -> ExpectedCase:
    """Two users of thirty events, one more appended, and three candidates."""
    outputs = {"score": np.zeros((2, 3), np.float32)}
    masks = {"history_mask": np.ones((2, 30), bool), "append_mask": np.ones((2, 1), bool)}
    return ExpectedCase(Case("thirty", masks), outputs, {})


@pytest.mark.parametrize(("axis", "size"), {"B": 2, "C": 3, "S": 30, "T": 1, "K": 9}.items())
def test_case_fits_a_profile_of_decode_by_every_size(axis: str, size: int):
    """Any of several profiles will do."""
    spec, anything = make_spec("sim", window=10), (Profile.from_dict({"B": "0:2:9"}),)

    def takes(*sizes: int) -> bool:
        decode = tuple(Profile.from_dict({axis: f"{n}:{n}:{n}"}) for n in sizes)
        return Contender("x", list, (anything, decode)).takes(spec, thirty())

    assert takes(size)
    assert takes(size + 1, size)
    assert not takes(size + 1, size - 1)


def test_case_that_prefill_takes_in_parts_fits_with_every_part():
    """The past of the first is empty: an engine that wants one can't be given the case."""
    spec, case = hstu_models.make_spec("two layers"), thirty()
    decode = Profile.from_dict({"K": "30:30:30"})
    for ranges, taken in (
        ({"S": "0:30:30", "K": "0:30:30"}, True),
        ({"S": "0:30:30", "K": "10:30:30"}, False),
        ({"S": "10:30:30", "K": "0:10:10"}, True),
        ({"S": "11:30:30", "K": "0:10:10"}, False),
        ({"S": "10:30:30", "K": "0:9:9"}, False),
    ):
        contender = Contender("x", list, ((Profile.from_dict(ranges),), (decode,)))
        assert contender.takes(spec, case) == taken, ranges
    sim = make_spec("sim", window=31)
    assert Contender("x", list, ((Profile.from_dict({"S": "30:30:30"}),), (decode,))).takes(
        sim, case
    )


def test_cases_beyond_a_profile_are_left_out(made, manifest):
    """And told: an engine is not judged by shapes that it wasn't built for."""
    full = line_up(made.folder, manifest).contenders[0]
    ranges = {"S": "0:4:6"}, {"S": "0:4:6", "T": "0:1:1"}
    small = Contender("small", full.runners, tuple((Profile.from_dict(r),) for r in ranges))
    stages = Stages()
    outcomes, _ = judge_lineup(
        made.folder, manifest, made.cases, Lineup((small,), {}), False, stages
    )
    sizes = [(r.case.case.cached, r.case.case.appended) for r in outcomes[0].runs]
    wanted = [(c.case.cached, c.case.appended) for c in made.cases]
    assert sizes == [(s, t) for s, t in wanted if s <= 6 and t <= 1]
    left = len(wanted) - len(sizes)
    told = f"score error {outcomes[0].worst('score'):.1e}; {left} cases are beyond its profile"
    assert stages.finished[-1].remark.endswith(told)
    assert left != len(sizes)
    report = ParityReport.of(manifest, made.cases, outcomes, {}, seed=0)
    assert f"Not judged by {left} of the cases" in page(report)
    none = Contender("none", full.runners, ((Profile.from_dict({"B": "1000"}),),))
    outcomes, not_run = judge_lineup(
        made.folder, manifest, made.cases, Lineup((none,), {}), False, Stages()
    )
    assert outcomes == ()
    assert "profile" in not_run["none"]


def test_several_runtimes_side_by_side(made, manifest):
    """Each is judged by itself: what is wrong with one leaves the other's verdict alone."""

    def wrong() -> list[Any]:
        prefill, decode = made.torch_runners()

        def shift(arrays) -> None:
            arrays["score"] += np.float32(0.01)

        return [prefill, Tampered(decode, outputs=shift)]

    lineup = Lineup(
        (Contender("good", lambda: list(made.torch_runners())), Contender("bad", wrong)), {}
    )
    outcomes, _ = judge_lineup(made.folder, manifest, made.cases, lineup, False, Stages())
    assert [(o.name, o.passed) for o in outcomes] == [("good", True), ("bad", False)]


def test_broken_file_is_an_error_not_a_runtime_that_is_missing(made, manifest, tmp_path: Path):
    for name in ("prefill", "decode"):
        (tmp_path / f"{name}.onnx").write_bytes(b"junk")
    lineup = restricted(line_up(tmp_path, manifest), ["onnxruntime-cpu"])
    with pytest.raises(ExportError, match="can't load"):
        judge_lineup(tmp_path, manifest, made.cases, lineup, False, Stages())

"""Engines into a bundle, with a stand-in for the library."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from types import ModuleType

import pytest

from ckv_export.contract import (
    AttentionSpec,
    DnnSpec,
    EventForm,
    FeatureSpec,
    ModelSpec,
    Profile,
    Range,
)
from ckv_export.deploy import engines
from ckv_export.deploy.engines import EngineOptions, build_engines
from ckv_export.engine import Backend, BuildRequest, BuiltEngine
from ckv_export.errors import EngineError
from ckv_export.manifest import Manifest, open_bundle
from ckv_export.stages import Stages

SPEC = ModelSpec(
    kind="sim",
    features=(FeatureSpec("item_id", "item", "categorical", 4, vocab_size=9),),
    attention=AttentionSpec(8, 2, 2, 2, 10, 10),
    dnn=DnnSpec((6,), ("relu",), True),
    max_len=20,
    window=5,
    options={"topk": 3},
)
RTX = Backend("tensorrt_rtx", ModuleType("tensorrt_rtx"), "1.7")
FULL = Backend("tensorrt", ModuleType("tensorrt"), "11.0")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of two graphs that nobody reads."""
    for name in ("prefill", "decode"):
        (tmp_path / f"{name}.onnx").write_text(name)
    manifest = Manifest(
        "toy",
        "ab" * 32,
        SPEC,
        EventForm(),
        None,
        Profile.default(SPEC),
        source={},
        versions={},
        operators={},
        notes=(),
        timings={},
        parity=None,
    )
    manifest.with_files(tmp_path).write(tmp_path)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[BuildRequest]:
    """Requests that the engine room got; it writes down what it would build."""
    requests: list[BuildRequest] = []

    def build(request: BuildRequest, backend: Backend, out: Path, progress) -> BuiltEngine:
        requests.append(request)
        if "unknown" in request.targets:
            raise EngineError("no such target")
        out.write_text(f"{request.targets} {request.profile.to_dict()}")
        profile = request.profile.to_dict()
        size = out.stat().st_size
        return BuiltEngine(
            *(out, backend.name, backend.version, request.targets, profile, 1.23456, size, 7),
            inputs=(),
            outputs=(),
        )

    monkeypatch.setattr(engines, "build_engine", build)
    return requests


def build(bundle: Path, options: EngineOptions) -> Manifest:
    manifest = open_bundle(bundle)
    built = build_engines(bundle, manifest, options, Stages(), contextlib.nullcontext)
    built.with_files(bundle).write(bundle)
    return open_bundle(bundle)


def test_an_engine_of_each_graph(bundle: Path, asked: list[BuildRequest]):
    manifest = build(bundle, EngineOptions(RTX, ("sm86", "sm120")))
    assert [request.onnx for request in asked] == [
        bundle / "prefill.onnx",
        bundle / "decode.onnx",
    ]
    for request, entry, graph in zip(asked, manifest.engines, ("prefill", "decode"), strict=True):
        assert request.tensors == manifest.graph(graph)
        assert request.profile == manifest.profile
        assert request.targets == entry.targets == ("sm86", "sm120")
        assert (entry.graph, entry.backend, entry.backend_version) == (graph, "tensorrt_rtx", "1.7")
        assert (entry.layers, entry.seconds) == (7, 1.235)
        assert (bundle / entry.file).is_file()
        assert entry.file in manifest.files


def test_options_reach_the_engine_room(bundle: Path, asked: list[BuildRequest]):
    profile = Profile.default(SPEC).replaced(SPEC, {"B": Range(1, 2, 3)})
    manifest = build(bundle, EngineOptions(RTX, ("sm86",), profile, 64, 5))
    for request in asked:
        assert (request.workspace_mib, request.optimization_level) == (64, 5)
        assert request.profile == profile
    assert {entry.profile["B"] for entry in manifest.engines} == {"1:2:3"}
    assert manifest.profile == Profile.default(SPEC)


def test_library_targets_and_graph_tell_engines_apart(bundle: Path, asked: list[BuildRequest]):
    chosen = [
        EngineOptions(backend, targets) for backend in (RTX, FULL) for targets in ((), ("sm86",))
    ]
    for options in chosen:
        build(bundle, options)
    files = [entry.file for entry in open_bundle(bundle).engines]
    assert len(set(files)) == len(files) == 2 * len(chosen)
    assert {Path(file).parent.as_posix() for file in files} == {"engines"}
    assert [request.targets for request in asked[::2]] == [
        ("portable",),
        ("sm86",),
        ("current",),
        ("sm86",),
    ]


def test_the_same_engine_is_replaced(bundle: Path, asked: list[BuildRequest]):
    options = EngineOptions(RTX, ("sm86",))
    first = build(bundle, options)
    profile = Profile.default(SPEC).replaced(SPEC, {"B": Range(1, 2, 3)})
    second = build(bundle, dataclasses.replace(options, profile=profile))
    assert [e.file for e in second.engines] == [e.file for e in first.engines]
    assert second.files[second.engines[0].file] != first.files[first.engines[0].file]
    assert second.engines[0].profile["B"] == "1:2:3"


def test_stages_are_timed(bundle: Path, asked: list[BuildRequest]):
    stages = Stages()
    options = EngineOptions(RTX, ("sm86",))
    build_engines(bundle, open_bundle(bundle), options, stages, contextlib.nullcontext)
    assert [stage.title for stage in stages.finished] == [
        "build prefill engine",
        "build decode engine",
    ]
    assert all("sm86" in stage.remark for stage in stages.finished)


def test_a_refusal_passes_through(bundle: Path, asked: list[BuildRequest]):
    with pytest.raises(EngineError, match="no such target"):
        build(bundle, EngineOptions(RTX, ("unknown",)))

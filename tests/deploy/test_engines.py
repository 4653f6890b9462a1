"""Engines into a bundle, with a stand-in for the library."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from ckv_testing.hstu import SPEC as HSTU

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
from ckv_export.deploy.built import read_report, rows
from ckv_export.deploy.engines import EngineOptions, build_engines, equivalent_commands
from ckv_export.deploy.profiles import NamedRanges
from ckv_export.engine import Backend, BuildRequest, BuiltEngine, PluginChoice, Settings
from ckv_export.engine.layers import NETWORK, Layer, LayerReport
from ckv_export.engine.plugins import PluginRecord
from ckv_export.errors import BundleError, EngineError, InputError
from ckv_export.manifest import EngineEntry, Manifest, open_bundle
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
        precision="fp16",
    )
    manifest.with_files(tmp_path).write(tmp_path)
    return tmp_path


REPORT = LayerReport(
    "built engine",
    (Layer("a", "kgen", ("a",), ("fp32",)), Layer("b", "kgen", ("router/b",), ("fp16",))),
)


def _plugin(request: BuildRequest) -> PluginRecord | None:
    library = request.settings.plugin.library
    if library is None:
        return None
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    carried = request.settings.version_compatible
    return PluginRecord("library", digest, "1", "11.0", ("sm90",), carried, library)


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
            plugin=_plugin(request),
            report=REPORT,
            settings=request.settings.recorded(),
            profiles=tuple(p.to_dict() for p in request.profiles),
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


def test_library_targets_and_graph_tell_engines_apart(
    bundle: Path, asked: list[BuildRequest], monkeypatch: pytest.MonkeyPatch
):
    """The GPU that is present is another one on another machine."""
    chosen = [
        EngineOptions(backend, targets) for backend in (RTX, FULL) for targets in ((), ("sm86",))
    ]
    for options, gpu in zip(chosen, ("sm80", "sm80", "sm90", "sm86"), strict=True):
        monkeypatch.setattr("ckv_export.engine.targets.present_gpu", lambda gpu=gpu: gpu)
        build(bundle, options)
    files = [entry.file for entry in open_bundle(bundle).engines]
    assert len(set(files)) == len(files) == 2 * len(chosen)
    assert {Path(file).parent.as_posix() for file in files} == {"engines"}
    assert files[0] == "engines/prefill.tensorrt_rtx.portable.engine"
    assert files[4] == "engines/prefill.tensorrt.sm90.engine"
    assert [request.targets for request in asked[::2]] == [
        ("portable",),
        ("sm86",),
        ("current",),
        ("sm86",),
    ]


def test_the_same_engine_is_replaced(
    bundle: Path, asked: list[BuildRequest], monkeypatch: pytest.MonkeyPatch
):
    """Its report too, and not in the file that a copy of the bundle may share."""
    options = EngineOptions(RTX, ("sm86",))
    first = build(bundle, options)
    report = bundle / first.engines[0].report
    os.link(report, bundle / "shared")
    before = report.read_text()
    monkeypatch.setitem(globals(), "REPORT", LayerReport("another", REPORT.layers))
    profile = Profile.default(SPEC).replaced(SPEC, {"B": Range(1, 2, 3)})
    second = build(bundle, dataclasses.replace(options, profile=profile))
    assert [e.file for e in second.engines] == [e.file for e in first.engines]
    assert second.files[second.engines[0].file] != first.files[first.engines[0].file]
    assert second.engines[0].profile["B"] == "1:2:3"
    assert (bundle / "shared").read_text() == before != report.read_text()


def test_the_librarys_own_tool_writes_the_same_files(bundle: Path):
    options = EngineOptions(FULL, ("sm90",))
    commands = equivalent_commands(bundle, open_bundle(bundle), options)
    for command, graph in zip(commands, ("prefill", "decode"), strict=True):
        assert f"--onnx={bundle}/{graph}.onnx" in command
        assert f"--saveEngine={bundle}/engines/{graph}.tensorrt.sm90.engine" in command


def test_several_profiles_are_one_engine(bundle: Path, asked: list[BuildRequest]):
    wishes = (NamedRanges.parse("history=0:5"), NamedRanges.parse("history=6:20,batch=1"))
    manifest = build(bundle, EngineOptions(RTX, ("sm86",), profiles=wishes))
    for request, entry in zip(asked, manifest.engines, strict=True):
        assert [p.to_dict()["S"] for p in request.profiles] == ["0:5:5", "6:20:20"]
        assert [p["S"] for p in entry.profiles] == ["0:5:5", "6:20:20"]
        assert entry.profile == entry.profiles[0]


def test_shapes_that_nobody_has_are_refused(bundle: Path, asked: list[BuildRequest]):
    with pytest.raises(InputError, match="would never hold candidates"):
        build(bundle, EngineOptions(RTX, ("sm86",), profiles=(NamedRanges.parse("C=0"),)))
    assert asked == []


def test_settings_and_reports_are_recorded(bundle: Path, asked: list[BuildRequest]):
    settings = Settings(version_compatible=True)
    manifest = build(bundle, EngineOptions(FULL, ("sm90",), settings=settings))
    for request, entry, graph in zip(asked, manifest.engines, ("prefill", "decode"), strict=True):
        assert request.settings == settings
        assert entry.settings == {"version_compatible": True}
        assert entry.onnx == manifest.files[f"{graph}.onnx"].sha256
        assert entry.report == f"engines/{graph}.tensorrt.sm90.layers.json"
        assert entry.report in manifest.files
        report = read_report(bundle, entry)
        assert report is not None
        assert (report["graph"], report["layer_count"]) == (graph, 2)
    heads = rows(bundle, manifest.engines)
    assert [row[1:4] for row in heads] == [
        ("(top level)", "fp32 (1)", "native"),
        ("router", "fp16 (1)", "native"),
    ] * 2
    (bundle / manifest.engines[0].report).write_text("{")
    with pytest.raises(BundleError, match="can't be read"):
        rows(bundle, manifest.engines)
    (bundle / manifest.engines[0].report).unlink()
    with pytest.raises(BundleError, match="can't be read: there is no such file"):
        rows(bundle, manifest.engines)


@pytest.mark.parametrize(
    ("precisions", "expected"),
    [
        ({"a": {"fp32": 2}, "b": {"fp32": 1}}, [("all", "fp32 (3)")]),
        ({"a": {"fp32": 2, "fp16": 1}, "b": {}}, [("a", "fp16 (1), fp32 (2)"), ("b", "none")]),
        ({}, [("all", "none")]),
    ],
)
def test_parts_are_told_apart_where_precisions_are(
    tmp_path: Path, precisions: dict[str, dict[str, int]], expected: list[tuple[str, str]]
):
    (tmp_path / "report.json").write_text(json.dumps({"precisions": precisions, "source": "s"}))
    entry = EngineEntry(
        "decode", "e", "tensorrt", "11", (), {}, 1, 0.0, "plugin", report="report.json"
    )
    assert rows(tmp_path, [entry]) == [("e", *row, "plugin", "s") for row in expected]


def test_settings_that_the_library_lacks(bundle: Path, asked: list[BuildRequest]):
    with pytest.raises(EngineError, match="has no --version-compatible"):
        build(bundle, EngineOptions(RTX, settings=Settings(version_compatible=True)))
    assert asked == []


def test_engines_from_the_cache_say_so(
    bundle: Path, asked: list[BuildRequest], monkeypatch: pytest.MonkeyPatch
):
    def cached(*given) -> BuiltEngine:
        assert given[-1] == Path("kept")
        return dataclasses.replace(engines.build_engine(*given[:-1]), cached=True)

    monkeypatch.setattr(engines, "cached_build", cached)
    stages, options = Stages(), EngineOptions(RTX, ("sm86",), cache=Path("kept"))
    build_engines(bundle, open_bundle(bundle), options, stages, contextlib.nullcontext)
    remarks = {stage.remark for stage in stages.finished}
    assert remarks == {"7 layers for sm86, from the engine cache"}


@pytest.mark.parametrize("pool", ["constant", "refit", "input"])
def test_the_export_says_whether_engines_can_be_refitted(
    bundle: Path, asked: list[BuildRequest], pool: str
):
    dataclasses.replace(open_bundle(bundle), pool=pool).write(bundle)
    module = ModuleType("tensorrt")
    module.BuilderFlag = SimpleNamespace(REFIT_INDIVIDUAL=0)  # type: ignore[attr-defined]
    manifest = build(bundle, EngineOptions(Backend("tensorrt", module, "11.0"), ("sm90",)))
    assert [request.settings.refit for request in asked] == [pool == "refit"] * 2
    assert {e.settings.get("refit", False) for e in manifest.engines} == {pool == "refit"}


def write_library(folder: Path, text: str) -> PluginRecord:
    folder.mkdir(exist_ok=True)
    library = folder / "libckv_plugins_trt11.so"
    library.write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return PluginRecord("library", digest, "1", "11.0", ("sm90",), False, library)


def test_a_library_comes_into_the_bundle_and_goes_with_its_engines(
    bundle: Path, asked: list[BuildRequest], tmp_path_factory: pytest.TempPathFactory
):
    places = [tmp_path_factory.mktemp(name) for name in "ab"]
    for text, place in zip(("one", "two"), places, strict=True):
        record = write_library(place, text)
        choice = PluginChoice("library", record.source)
        options = EngineOptions(FULL, ("sm90",), settings=Settings(choice))
        manifest = build(bundle, options)
        files = {e.plugin["file"] for e in manifest.engines if e.plugin}
        (file,) = files
        assert (bundle / file).read_text() == text
        assert manifest.files[file].sha256 == record.sha256
        assert [p.suffix for p in (bundle / "engines").iterdir()].count(".so") == 1
        names = {entry.file for entry in manifest.engines}
        assert names == {f"engines/{g}.tensorrt.sm90.library.engine" for g in ("prefill", "decode")}
    # One that carries its library needs none beside it.
    options = dataclasses.replace(options, settings=Settings(choice, version_compatible=True))
    manifest = build(bundle, options)
    assert [e.plugin["file"] for e in manifest.engines if e.plugin] == [None, None]
    assert not list((bundle / "engines").glob("*.so"))
    # Native engines lie beside them.
    assert len(build(bundle, EngineOptions(FULL, ("sm90",))).engines) == 4


def test_engines_of_earlier_versions_are_read(bundle: Path, asked: list[BuildRequest]):
    manifest = build(bundle, EngineOptions(RTX, ("sm86",)))
    data = json.loads((bundle / "manifest.json").read_text())
    later = ("pool_step", "plugin", "settings", "report", "profiles", "onnx")
    for engine in data["engines"]:
        for name in later:
            del engine[name]
    (bundle / "manifest.json").write_text(json.dumps(data))
    read = open_bundle(bundle)
    assert [e.file for e in read.engines] == [e.file for e in manifest.engines]
    assert {row[4] for row in rows(bundle, read.engines)} == {"no report"}
    for odd in ({"plugin": 3}, {"settings": []}, {"profiles": {}}, {"report": 1}):
        data["engines"][0].update(odd)
        (bundle / "manifest.json").write_text(json.dumps(data))
        with pytest.raises(BundleError, match="is damaged"):
            open_bundle(bundle)
        for name in odd:
            del data["engines"][0][name]


def test_stages_are_timed(bundle: Path, asked: list[BuildRequest]):
    stages = Stages()
    options = EngineOptions(RTX, ("sm86",))
    build_engines(bundle, open_bundle(bundle), options, stages, contextlib.nullcontext)
    assert [stage.title for stage in stages.finished] == [
        "build prefill engine",
        "build decode engine",
    ]
    assert all("sm86" in stage.remark for stage in stages.finished)


def test_an_engine_in_another_precision_is_refused(bundle: Path, asked: list[BuildRequest]):
    dataclasses.replace(open_bundle(bundle), precision="bf16").write(bundle)
    with pytest.raises(EngineError, match=r"was to compute in bf16 and fp32.* fp16 in router"):
        build(bundle, EngineOptions(RTX, ("sm86",)))
    assert open_bundle(bundle).engines == ()


@pytest.mark.parametrize(
    ("model", "refused"), [(SPEC, "decode"), (HSTU, "prefill")], ids=["one layer", "more"]
)
def test_only_a_prefill_of_one_layer_has_nothing_to_reduce(
    bundle: Path,
    asked: list[BuildRequest],
    monkeypatch: pytest.MonkeyPatch,
    model: ModelSpec,
    refused: str,
):
    monkeypatch.setitem(globals(), "REPORT", LayerReport(NETWORK, REPORT.layers[:1]))
    profile = Profile.default(model)
    dataclasses.replace(open_bundle(bundle), model=model, profile=profile).write(bundle)
    with pytest.raises(EngineError, match=rf"engines/{refused}\..* and all its layers are fp32"):
        build(bundle, EngineOptions(RTX, ("sm86",)))
    assert asked[-1].onnx.name == f"{refused}.onnx"


def test_a_refusal_passes_through(bundle: Path, asked: list[BuildRequest]):
    with pytest.raises(EngineError, match="no such target"):
        build(bundle, EngineOptions(RTX, ("unknown",)))

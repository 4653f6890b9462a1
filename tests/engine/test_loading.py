"""What a bundle's engine must be before it is loaded, each fault with the command that mends it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ckv_testing.draw import make_spec
from ckv_testing.fake_builder import FakeTensorRt

from ckv_export.contract import EventForm, Profile
from ckv_export.engine import Backend, plugin_library
from ckv_export.engine.loading import BundleEngine
from ckv_export.errors import EngineError
from ckv_export.manifest import EngineEntry, Manifest, open_bundle
from ckv_export.runtimes.tensorrt import TensorRtRunner

FILE = "engines/decode.tensorrt.sm90.engine"
LIBRARY = "engines/libckv_plugins_trt11.abc.so"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., BundleEngine]:
    """A bundle with one engine, whose entry differs as given."""

    def make(library: str | None = None, **entry: Any) -> BundleEngine:
        (tmp_path / "engines").mkdir(exist_ok=True)
        for name in ("prefill.onnx", "decode.onnx", FILE):
            (tmp_path / name).write_text(name)
        if library is not None:
            (tmp_path / LIBRARY).write_text(library)
            digest = hashlib.sha256(library.encode()).hexdigest()
            plugin = {
                "kind": "library", "sha256": digest, "operator_version": "1",
                "tensorrt": "11.4.0", "targets": ["sm90"], "carried": False, "file": LIBRARY,
            }  # fmt: skip
            entry = {"plugin": plugin} | entry
        onnx = hashlib.sha256(b"decode.onnx").hexdigest()
        whole = {
            "graph": "decode", "file": FILE, "backend": "tensorrt", "backend_version": "11.4.0.106",
            "targets": ("sm90",), "profile": {}, "layers": 1, "seconds": 0.0, "onnx": onnx,
        }  # fmt: skip
        spec = make_spec("sim")
        manifest = Manifest(
            "toy", "ab" * 32, spec, EventForm(), None, Profile.default(spec),
            source={}, versions={}, operators={}, notes=(), timings={}, parity=None,
            engines=(EngineEntry(**(whole | entry)),),
        )  # fmt: skip
        manifest.with_files(tmp_path).write(tmp_path)
        manifest = open_bundle(tmp_path)
        return BundleEngine(tmp_path, manifest, manifest.engines[0])

    return make


Write = Callable[..., BundleEngine]


def refuse(engine: BundleEngine, backend: Backend) -> str:
    with pytest.raises(EngineError) as failure:
        engine.prepare(backend)
    return str(failure.value)


def test_a_fitting_engine(write: Write, full: FakeTensorRt):
    write().prepare(full.backend)
    write(onnx="").prepare(full.backend)  # of a version that did not record it
    assert full.loaded == []


def test_a_damaged_engine(write: Write, full: FakeTensorRt):
    engine = write()
    data = bytearray(engine.path.read_bytes())
    data[3] ^= 1
    engine.path.write_bytes(data)
    assert "its hash differs: restore the file" in refuse(engine, full.backend)
    engine.path.unlink()
    assert f"lacks its engine {FILE}" in refuse(engine, full.backend)


def test_an_engine_of_another_model(write: Write, full: FakeTensorRt):
    """Its own hash is listed, but it was built from another decode.onnx."""
    engine = write(onnx="00" * 32)
    sentence = refuse(engine, full.backend)
    assert "was built from another decode.onnx" in sentence
    assert f"run ckv-export build {engine.folder}" in sentence


@pytest.mark.parametrize(
    ("built", "here", "settings", "runs"),
    [
        ("11.4.0.106", "11.4.0", {}, True),
        ("11.4.0", "11.4.0.106", {}, True),
        ("11.3.0", "11.4.0", {}, False),
        ("11.4.1", "11.4.0", {}, False),
        ("10.13.2", "11.4.0", {"version_compatible": True}, True),
        ("11.5.0", "11.4.0", {"version_compatible": True}, False),
    ],
)
def test_versions(
    write: Write, full: FakeTensorRt, built: str, here: str, settings: dict[str, bool], runs: bool
):
    engine = write(backend_version=built, settings=settings)
    backend = dataclasses.replace(full.backend, version=here)
    if runs:
        engine.prepare(backend)
        return
    sentence = refuse(engine, backend)
    assert f"install tensorrt=={built}, or run ckv-export build {engine.folder}" in sentence
    assert ("--version-compatible" in sentence) == bool(settings)


def test_another_library(write: Write, full: FakeTensorRt):
    engine = write(backend="tensorrt_rtx", backend_version="1.7.1")
    sentence = refuse(engine, full.backend)
    assert "was built with tensorrt_rtx 1.7.1, and TensorRT 11.4.0 can't run it" in sentence
    assert "--backend=tensorrt --target=current" in sentence


@pytest.mark.parametrize(
    ("gpu", "settings", "runs"),
    [
        ("sm90", {}, True),
        ("sm80", {}, False),
        ("sm120", {}, False),
        ("sm80", {"hardware_compatible": True}, True),
        ("sm120", {"hardware_compatible": True}, True),
        ("sm75", {"hardware_compatible": True}, False),
    ],
)
def test_gpus(
    write: Write,
    full: FakeTensorRt,
    monkeypatch: pytest.MonkeyPatch,
    gpu: str,
    settings: dict[str, bool],
    runs: bool,
):
    monkeypatch.setattr("ckv_export.engine.loading.present_gpu", lambda: gpu)
    engine = write(settings=settings)
    if runs:
        engine.prepare(full.backend)
        return
    sentence = refuse(engine, full.backend)
    assert f"was built for sm90, the GPU here is {gpu}: run ckv-export build" in sentence
    assert sentence.count("--target") == 1


def test_rtx_is_told_the_target(write: Write, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ckv_export.engine.loading.present_gpu", lambda: "sm89")
    engine = write(backend="tensorrt_rtx", backend_version="1.7.1", targets=("sm86", "sm120"))
    backend = Backend("tensorrt_rtx", None, "1.7.1.116")  # type: ignore[arg-type]
    assert refuse(engine, backend).endswith("--backend=tensorrt_rtx --target=sm89")
    monkeypatch.setattr("ckv_export.engine.loading.present_gpu", lambda: None)
    assert "there is no GPU here" in refuse(engine, backend)


def test_the_plugin_library_is_loaded_once(write: Write, full: FakeTensorRt):
    engine = write("PooledAttention")
    for _ in range(2):
        engine.prepare(full.backend)
    assert full.loaded == [str(engine.folder / LIBRARY)]
    assert plugin_library.loaded()


def test_a_plugin_inside_the_engine_needs_no_library(write: Write, full: FakeTensorRt):
    engine = write("PooledAttention")
    assert engine.entry.plugin is not None
    carried = dict(engine.entry.plugin) | {"carried": True, "file": None}
    write(plugin=carried, settings={"version_compatible": True}).prepare(full.backend)
    assert full.loaded == []
    embedded = write(plugin=carried | {"kind": "embedded"}, backend_version="11.3.0")
    assert refuse(embedded, full.backend).endswith("--target=current --plugin=embedded")


def test_another_plugin_library(write: Write, full: FakeTensorRt):
    engine = write("PooledAttention")
    (engine.folder / LIBRARY).write_text("PooledAttention Other")
    sentence = refuse(engine, full.backend)
    assert "is not the plugin library that" in sentence
    assert "--plugin-library=DIR" in sentence
    (engine.folder / LIBRARY).unlink()
    assert "needs the plugin library" in refuse(engine, full.backend)
    assert full.loaded == []


def test_another_version_of_the_operators(write: Write, full: FakeTensorRt):
    engine = write("PooledAttention")
    assert engine.entry.plugin is not None
    plugin = dict(engine.entry.plugin) | {"operator_version": "0"}
    sentence = refuse(write("PooledAttention", plugin=plugin), full.backend)
    assert "needs version 0 of the operators" in sentence


def test_the_runner_of_a_bundle_checks_first(
    write: Write, full: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ckv_export.runtimes.tensorrt.load", lambda name: full.backend)
    engine = write(onnx="00" * 32)
    runner = TensorRtRunner.of_bundle(engine.folder, engine.manifest, engine.entry)
    assert runner.io == engine.manifest.graph("decode")
    with pytest.raises(EngineError, match=r"another decode\.onnx"):
        runner.activate()

"""The engine cache: what counts as the same build, and that only whole entries are used."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ckv_testing import fake_builder
from ckv_testing.fake_builder import FakeTensorRt, write_library
from onnx import helper

from ckv_export.contract import Profile, Range, TensorSpec
from ckv_export.engine import Backend, BuildRequest, BuiltEngine, PluginChoice, Settings
from ckv_export.engine import cache as cache_module
from ckv_export.engine.cache import cached_build, key_of, require_place
from ckv_export.errors import EngineError

pytestmark = pytest.mark.tensorrt


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[BuildRequest]:
    """Requests that were really built."""
    real, requests = cache_module.build_engine, []

    def build(request: BuildRequest, *rest: Any) -> BuiltEngine:
        requests.append(request)
        return real(request, *rest)

    monkeypatch.setattr(cache_module, "build_engine", build)
    return requests


def test_the_same_build_is_copied(
    rtx: Backend, projection, tmp_path: Path, builds: list[BuildRequest]
):
    request = projection.request(targets=("sm86",), optimization_level=0)
    cache = tmp_path / "cache" / "engines"
    first = cached_build(request, rtx, tmp_path / "a", None, cache)
    (tmp_path / "b").write_text("of a bundle that shares it")
    os.link(tmp_path / "b", tmp_path / "shared")
    second = cached_build(request, rtx, tmp_path / "b", None, cache)
    assert len(builds) == 1
    assert (first.cached, second.cached) == (False, True)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert (tmp_path / "shared").read_text() == "of a bundle that shares it"
    assert 0 < second.seconds != first.seconds
    same = dataclasses.replace(first, path=tmp_path / "b", seconds=second.seconds, cached=True)
    assert second == same
    (entry,) = cache.iterdir()
    assert entry.name == key_of(request, rtx)
    assert sorted(p.name for p in entry.iterdir()) == ["built.json", "engine"]


@pytest.mark.parametrize(
    "damage", ["engine", "built.json", "record gone", "engine gone", "junk", "[]", "{}"]
)
def test_a_damaged_entry_is_built_again(
    rtx: Backend, projection, tmp_path: Path, builds: list[BuildRequest], damage: str
):
    request = projection.request(targets=("sm86",), optimization_level=0)
    cached_build(request, rtx, tmp_path / "a", None, tmp_path / "cache")
    entry = tmp_path / "cache" / key_of(request, rtx)
    match damage:
        case "engine" | "built.json":
            data = bytearray((entry / damage).read_bytes())
            data[len(data) // 2] ^= 1
            (entry / damage).write_bytes(data)
        case "junk":
            (entry / "built.json").write_text("no record")
        case "[]" | "{}":  # as another version of this program might write it
            digest = hashlib.sha256(damage.encode()).hexdigest()
            (entry / "built.json").write_text(f"{digest}\n{damage}")
        case "record gone":
            (entry / "built.json").unlink()
        case _:
            (entry / "engine").unlink()
    again = cached_build(request, rtx, tmp_path / "b", None, tmp_path / "cache")
    assert not again.cached
    assert len(builds) == 2
    assert cached_build(request, rtx, tmp_path / "c", None, tmp_path / "cache").cached
    assert (tmp_path / "c").read_bytes() == (tmp_path / "b").read_bytes()
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [entry.name]


@pytest.mark.parametrize("step", ["build_engine", "rename"])
def test_another_build_that_was_faster(
    rtx: Backend, projection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
):
    """Its entry stays, for a third one may be reading it."""
    request = projection.request(targets=("sm86",), optimization_level=0)
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    cached_build(request, rtx, tmp_path / "a", None, elsewhere)
    entry = cache / key_of(request, rtx)
    owner = Path if step == "rename" else cache_module
    real, theirs = getattr(owner, step), []

    def second(*given: Any) -> Any:
        shutil.copytree(elsewhere, cache, dirs_exist_ok=True)
        theirs.append((entry / "engine").stat().st_ino)
        return real(*given)

    monkeypatch.setattr(owner, step, second)
    assert not cached_build(request, rtx, tmp_path / "b", None, cache).cached
    assert theirs == [(entry / "engine").stat().st_ino]
    assert [p.name for p in cache.iterdir()] == [entry.name]


def test_a_failed_build_leaves_no_entry(rtx: Backend, projection, tmp_path: Path):
    request = projection.request(targets=("sm75",))
    with pytest.raises(EngineError, match="FP32 GEMM"):
        cached_build(request, rtx, tmp_path / "a", None, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_plugins_of_rtx_are_refused_before_anything_is_read(
    rtx: Backend, projection, tmp_path: Path
):
    request = projection.request(settings=Settings(PluginChoice("library", tmp_path / "none.so")))
    with pytest.raises(EngineError, match="has no plugins"):
        cached_build(request, rtx, tmp_path / "a", None, tmp_path / "cache")


def test_a_cache_that_cannot_be_written(rtx: Backend, projection, tmp_path: Path):
    (tmp_path / "cache").write_text("a file")
    request = projection.request(targets=("sm86",), optimization_level=0)
    with pytest.raises(EngineError, match=r"can't write to the engine cache \S*: File exists$"):
        cached_build(request, rtx, tmp_path / "a", None, tmp_path / "cache")


def test_where_no_cache_can_be_is_known_before_a_build(tmp_path: Path):
    require_place(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(EngineError, match=r"the engine cache .*file is no folder"):
            require_place(place)
    with pytest.raises(EngineError, match="too long"):
        require_place(tmp_path / ("x" * 300))


def test_everything_that_decides_what_is_built_is_in_the_key(
    rtx: Backend, projection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    request = projection.request(targets=("sm86",))
    more = Profile({"B": Range(1, 1, 4), "S": Range(0, 6, 41)})
    spec = dataclasses.replace(request.tensors, name="decode")
    others = [
        dataclasses.replace(request, profile=more),
        dataclasses.replace(request, more_profiles=(more,)),
        dataclasses.replace(request, targets=("sm89",)),
        dataclasses.replace(request, workspace_mib=64),
        dataclasses.replace(request, optimization_level=1),
        dataclasses.replace(request, tensors=spec),
        dataclasses.replace(request, tensors=dataclasses.replace(request.tensors, outputs=())),
    ]
    keys = [key_of(each, rtx) for each in (request, *others)]
    keys.append(key_of(request, dataclasses.replace(rtx, version="1.8.0")))
    content = projection.path.read_bytes()
    projection.path.write_bytes(content.replace(b"project", b"product"))
    keys.append(key_of(request, rtx))
    projection.path.write_bytes(content)
    assert key_of(dataclasses.replace(request, targets=("SM_86", "8.6")), rtx) == keys[0]
    monkeypatch.setattr(cache_module, "LAYOUT", cache_module.LAYOUT + 1)
    keys.append(key_of(request, rtx))
    assert len(set(keys)) == len(keys)


def test_weights_beside_the_file_are_in_the_key(
    rtx: Backend, save_graph: Callable[..., Any], tmp_path: Path
):
    x, y = TensorSpec("x", "float32", ("B", 8)), TensorSpec("y", "float32", ("B", 4))
    product = helper.make_node("MatMul", ["x", "W"], ["y"])
    graph = save_graph([product], [x], [y], {"W": np.ones((8, 4), np.float32)}, external=True)
    request = graph.request(targets=("sm86",))
    before = key_of(request, rtx)
    stored = next(p for p in tmp_path.iterdir() if p.name.startswith("graph.onnx."))
    data = bytearray(stored.read_bytes())
    data[0] ^= 1
    stored.write_bytes(data)
    assert key_of(request, rtx) != before
    stored.unlink()
    with pytest.raises(EngineError, match="lacks its weights"):
        key_of(request, rtx)


def test_files_that_are_no_onnx(rtx: Backend, projection, tmp_path: Path):
    projection.path.write_bytes(b"no graph at all " * 9)
    with pytest.raises(EngineError, match="can't be read as ONNX"):
        key_of(projection.request(), rtx)
    projection.path.unlink()
    with pytest.raises(EngineError, match="there is no ONNX file"):
        key_of(projection.request(), rtx)


# -- the full TensorRT, a stand-in


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    monkeypatch.setattr("ckv_export.engine.cache.present_gpu_name", lambda: "H100")
    return fake_builder.install(monkeypatch)


def test_gpu_flags_and_plugin_are_in_the_key_and_timings_are_not(
    projection, full: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    libraries = [write_library(tmp_path / name, [name]) for name in ("a", "b")]
    settings = [
        Settings(),
        Settings(version_compatible=True),
        Settings(hardware_compatible=True),
        Settings(refit=True),
        *(Settings(PluginChoice("library", library)) for library in libraries),
    ]
    request = projection.request(targets=("current",))
    keys = [key_of(dataclasses.replace(request, settings=s), full.backend) for s in settings]
    timed = dataclasses.replace(request, settings=Settings(timing_cache=tmp_path / "t"))
    assert key_of(timed, full.backend) == keys[0]
    embedded = dataclasses.replace(request, settings=Settings(PluginChoice("embedded")))
    for digest in ("1", "2"):  # of the kernels' sources and their compiler
        compiler = SimpleNamespace(find=lambda target, d=digest: SimpleNamespace(sha256=d))
        monkeypatch.setattr("ckv_export.engine.plugins.Compiler", compiler)
        keys.append(key_of(embedded, full.backend))
    monkeypatch.setattr("ckv_export.engine.cache.present_gpu_name", lambda: "H200")
    keys.append(key_of(request, full.backend))
    assert len(set(keys)) == len(keys)


def test_a_library_is_found_again_with_its_engine(
    projection, full: FakeTensorRt, tmp_path: Path, builds: list[BuildRequest]
):
    """So that it can be put beside the engine; it need not be loaded for that."""
    library = write_library(tmp_path / "lib", ["PooledAttention"])
    choice = Settings(PluginChoice("library", library.parent))
    request = projection.request(targets=("current",), settings=choice)
    first = cached_build(request, full.backend, tmp_path / "a", None, tmp_path / "cache")
    full.loaded.clear()
    second = cached_build(request, full.backend, tmp_path / "b", None, tmp_path / "cache")
    assert len(builds) == 1
    assert second.plugin == first.plugin
    assert second.plugin is not None
    assert second.plugin.source == library
    assert second.plugin.sha256 == hashlib.sha256(library.read_bytes()).hexdigest()
    assert full.loaded == []

"""Which engines of a bundle belong together, and what tells the sets apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from ckv_testing.bundles import manifest_of
from ckv_testing.exports import Export

from ckv_export.bench.engine_sets import engine_sets
from ckv_export.manifest import EngineEntry, Manifest


def engine(graph: str, backend: str, target: str, plugin: str = "") -> EngineEntry:
    file = f"engines/{graph}.{backend}.{target}.{plugin}.engine"
    step = "plugin" if plugin and graph == "decode" else "native"
    kind = {"kind": plugin} if plugin else None
    return EngineEntry(graph, file, backend, "1", (target,), {}, 1, 1.0, step, kind)


@pytest.fixture
def with_engines(exported: Callable[[str], Export]) -> Callable[..., Manifest]:
    def make(*engines: EngineEntry) -> Manifest:
        return dataclasses.replace(manifest_of(exported("sim")), engines=engines)

    return make


def both(*words: str) -> list[EngineEntry]:
    return [engine(graph, *words) for graph in ("decode", "prefill")]


def test_plugin_and_native_engines_of_one_bundle_are_two_sets(with_engines):
    manifest = with_engines(
        *both("tensorrt_rtx", "sm86"),
        *both("tensorrt", "sm90", "library"),
        *both("tensorrt", "sm90"),
    )
    found = {s.name: (s.backend, s.prefill.file, s.decode.file) for s in engine_sets(manifest)}
    assert list(found) == [
        "tensorrt engines, library plugin",
        "tensorrt engines",
        "tensorrt_rtx engines",
    ]
    for name, (backend, prefill, decode) in found.items():
        kind = "library" if "library" in name else ""
        target = "sm86" if backend == "tensorrt_rtx" else "sm90"
        assert prefill == f"engines/prefill.{backend}.{target}.{kind}.engine"
        assert decode == f"engines/decode.{backend}.{target}.{kind}.engine"


def test_targets_are_named_where_nothing_else_differs(with_engines):
    manifest = with_engines(*both("tensorrt_rtx", "sm86"), *both("tensorrt_rtx", "sm120"))
    names = [s.name for s in engine_sets(manifest)]
    assert names == ["tensorrt_rtx engines for sm86", "tensorrt_rtx engines for sm120"]


def test_an_engine_alone_is_no_set(with_engines):
    manifest = with_engines(
        engine("decode", "tensorrt", "sm90"), engine("prefill", "tensorrt", "sm80")
    )
    assert list(engine_sets(manifest)) == []

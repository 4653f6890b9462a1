"""The ways of a bundle with engines, made without loading one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from ckv_testing.bundles import manifest_of
from ckv_testing.exports import Export
from ckv_testing.fake_engine import MODULE

from ckv_export.bench.bundle_ways import FIRST, NO_CACHE, ON_CUDA, bundle_ways
from ckv_export.bench.bundles import BenchedBundle
from ckv_export.bench.ways import Origin
from ckv_export.engine import Backend
from ckv_export.errors import EngineError
from ckv_export.manifest import EngineEntry, ItemTable


def engine(graph: str, plugin: str = "") -> EngineEntry:
    file = f"engines/{graph}.{plugin or 'native'}.engine"
    step = ("plugin" if plugin else "native") if graph == "decode" else "none"
    kind = {"kind": plugin} if plugin else None
    return EngineEntry(graph, file, "tensorrt", "1", ("sm90",), {}, 1, 1.0, step, kind)


ENGINES = tuple(engine(g, p) for p in ("", "library") for g in ("prefill", "decode"))


@pytest.fixture
def bundle(exported: Callable[[str], Export]) -> BenchedBundle:
    made = exported("sim")
    manifest = dataclasses.replace(manifest_of(made, "fp16"), engines=ENGINES)
    return BenchedBundle(made.folder, manifest, "half")


def test_each_set_of_engines_runs_with_cuda_graphs_and_without(
    bundle: BenchedBundle, monkeypatch: pytest.MonkeyPatch
):
    backend = Backend("tensorrt", MODULE, "1.0")
    monkeypatch.setattr("ckv_export.runtimes.tensorrt.load", lambda name: backend)
    ways, left_out = bundle_ways(bundle, 1, "fp32")
    engines = {w.name: w for w in ways if "engines" in w.name}
    assert list(engines) == [
        "half: tensorrt engines, compact cache",
        "half: tensorrt engines, CUDA graphs, compact cache",
        "half: tensorrt engines, library plugin, compact cache",
        "half: tensorrt engines, library plugin, CUDA graphs, compact cache",
    ]
    for name, way in engines.items():
        kind, step = ("library", "plugin") if "library" in name else ("native", "native")
        assert way.origin == Origin("drawn", "fp16", step)
        assert way.decode.runner.path == bundle.folder / f"engines/decode.{kind}.engine"
        assert way.prefill.runner.path == bundle.folder / f"engines/prefill.{kind}.engine"
        graphs = "CUDA graphs" in name
        assert way.decode.runner._cuda_graphs == way.prefill.runner._cuda_graphs == graphs
        assert way.settles == (3 if graphs else 1), "a replay is compared too"
    assert {w.name for w in ways} - set(engines) >= {f"half: {FIRST}", f"half: {NO_CACHE}"}
    assert "half: tensorrt_rtx engines, compact cache" in [w.name for w in left_out]


def test_what_cannot_run_is_named_with_the_reason(
    bundle: BenchedBundle, monkeypatch: pytest.MonkeyPatch
):
    def refuse(name: str) -> Backend:
        raise EngineError("no such module")

    monkeypatch.setattr("ckv_export.runtimes.tensorrt.load", refuse)
    manifest = dataclasses.replace(bundle.manifest, item_table=ItemTable(30, 6, "float32"))
    bundle = BenchedBundle(bundle.folder, manifest, "")
    ways, left_out = bundle_ways(bundle, 1, "fp32")
    assert [w.name for w in ways if "engines" in w.name] == []
    reasons = {w.name: w.reason for w in left_out}
    assert reasons["tensorrt engines, CUDA graphs, compact cache"] == "no such module"
    assert "ckv-export build makes them" in reasons["tensorrt_rtx engines, compact cache"]
    assert "decode_items is not measured" in reasons["ONNX Runtime, item table"]
    if ON_CUDA in reasons:
        assert "install onnxruntime-gpu" in reasons[ON_CUDA]


def test_pools_are_not_asked_of_a_bundle_whose_graphs_hold_them(bundle: BenchedBundle):
    assert not (Path(bundle.folder) / "pools.safetensors").exists()
    ways, _ = bundle_ways(bundle, 1, "fp32")
    assert ways[0].decode.constants == {}

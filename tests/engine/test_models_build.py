"""Every model's graphs become engines, without a GPU, for the shapes of the default profile."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from ckv_testing import fake_builder, fake_tensorrt
from ckv_testing.draw import KINDS, PLAIN, draw_state, make_spec
from ckv_testing.exports import VARIANTS, Export
from ckv_testing.fake_builder import FakeTensorRt
from ckv_testing.hstu import SPEC as HSTU
from ckv_testing.hstu import exported_hstu, hstu_state

from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.contract import EventForm, GraphSpec, Profile
from ckv_export.engine import (
    Backend,
    BuildRequest,
    BuiltEngine,
    PluginChoice,
    Settings,
    build_engine,
)
from ckv_export.engine.layers import POOL_STEP
from ckv_export.engine.precision import require_precision
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.decode_items import DecodeItemsGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.events import EventEmbedding
from ckv_export.model.registry import build_model
from ckv_export.onnx_export.export import export_graph
from ckv_export.onnx_export.save import save_models

pytestmark = [pytest.mark.tensorrt, pytest.mark.usefixtures("one_thread")]

ITEMS = 30
EXACT = ("events/", "gsu_", "long_query", "long_key", "input")
"""Parts that are fp32 in every precision, beside routers, user parts and norms."""


@dataclass(frozen=True)
class Files:
    """Exported graphs of one model, and the shapes its engines are for by default."""

    folder: Path
    graphs: dict[str, GraphSpec]
    profile: Profile

    def build(self, graph: str, backend: Backend, out: Path) -> BuiltEngine:
        path = self.folder / f"{graph}.onnx"
        request = BuildRequest(path, self.graphs[graph], self.profile, ("sm86",))
        return build_engine(request, backend, out / f"{graph}.engine")


def files_of(folder: Path, *graphs: PrefillGraph | DecodeGraph | DecodeItemsGraph) -> Files:
    ios = {graph.io.name: graph.io for graph in graphs}
    return Files(folder, ios, Profile.default(graphs[0].model.spec))


@pytest.fixture
def target_attention(exported: Callable[[str], Export], rtx: Backend) -> Callable[[str], Files]:
    """The session's one export of each kind; none where there is nothing to build with."""

    def get(kind: str) -> Files:
        made = exported(kind)
        return files_of(made.folder, *made.graphs())

    return get


@pytest.fixture(scope="session")
def hstu(rtx: Backend, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The session's one export of HSTU, which tests/onnx_export runs on ONNX Runtime."""
    folder = exported_hstu(tmp_path_factory.getbasetemp())
    loaded = load_checkpoint(folder / "hstu.pt")
    model = build_model(loaded.spec, loaded.state)
    return files_of(folder, PrefillGraph(model), DecodeGraph(model))


@pytest.fixture(scope="session")
def by_items(rtx: Backend, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A SIM's decode graph that takes ids and an item table."""
    folder = tmp_path_factory.mktemp("decode_items")
    spec = make_spec("sim", features=(dataclasses.replace(PLAIN[0], vocab_size=ITEMS),))
    state = draw_state(spec, np.random.default_rng(0))
    events = EventEmbedding(spec, state, EventForm(item_key="item_id"))
    graph = DecodeItemsGraph(build_model(spec, state, events))
    save_models({graph.io.name: export_graph(graph)}, folder)
    files = files_of(folder, graph)
    return dataclasses.replace(files, profile=files.profile.with_items(ITEMS))


def check(built: BuiltEngine, files: Files, graph: str) -> None:
    """The engine has the contract's tensors and the ranges that were asked for, and no plugin."""
    io = files.graphs[graph]
    assert built.path.stat().st_size == built.bytes > 0
    assert built.targets == ("sm86",)
    assert built.plugins == ()
    for found, declared in ((built.inputs, io.inputs), (built.outputs, io.outputs)):
        assert {(t.name, t.dtype) for t in found} == {(t.name, t.dtype) for t in declared}
    used = {axis for t in io.inputs for axis in t.axes if isinstance(axis, str)}
    assert built.profile == {a: r for a, r in files.profile.to_dict().items() if a in used}
    assert built.profile["S"].startswith("0:")


@pytest.mark.parametrize("graph", ["prefill", "decode"])
@pytest.mark.parametrize("kind", KINDS)
def test_target_attention_models_build(
    kind: str,
    graph: str,
    target_attention: Callable[[str], Files],
    rtx: Backend,
    tmp_path: Path,
):
    files = target_attention(kind)
    check(files.build(graph, rtx, tmp_path), files, graph)


@pytest.mark.parametrize("graph", ["prefill", "decode"])
def test_hstu_builds(graph: str, hstu: Files, rtx: Backend, tmp_path: Path):
    assert {"B", "S", "T", "C", "K"} <= set(hstu.profile.axes)
    check(hstu.build(graph, rtx, tmp_path), hstu, graph)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [*((kind, "fp16") for kind in (*KINDS, "hstu")), ("sim", "bf16")],
)
def test_half_precision_builds(kind: str, precision: str, rtx: Backend, tmp_path: Path):
    """Decode of every kind; of HSTU prefill too, which is not the same in every precision.

    Between the two halves only the name of a type differs, so one kind shows both.
    """
    spec = HSTU if kind == "hstu" else VARIANTS[kind]
    state = hstu_state(spec) if kind == "hstu" else draw_state(spec, np.random.default_rng(0))
    model = build_model(spec, state, precision=precision)
    graphs = [DecodeGraph(model), *([PrefillGraph(model)] if kind == "hstu" else [])]
    files = files_of(tmp_path, *graphs)
    for graph in graphs:
        save_models({graph.io.name: export_graph(graph)}, tmp_path)
        built = files.build(graph.io.name, rtx, tmp_path)
        check(built, files, graph.io.name)
        assert built.report is not None
        require_precision(built.report, precision, True, graph.io.name)
        for part, counts in built.report.parts.items():
            if part.startswith(EXACT) or part.endswith(("router", "logits", "/user", "norm")):
                assert part == "dnn/first/user" or set(counts) == {"fp32"}, part
        assert precision in built.report.parts[POOL_STEP]


def test_decode_by_item_table_builds(by_items: Files, rtx: Backend, tmp_path: Path):
    built = by_items.build("decode_items", rtx, tmp_path)
    check(built, by_items, "decode_items")
    assert built.profile["I"] == f"{ITEMS}:{ITEMS}:{ITEMS}"


@pytest.fixture
def embedding(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRt]:
    """A stand-in for the full TensorRT under NVIDIA's own layer of Python plugins."""
    yield fake_builder.install(monkeypatch, fake_tensorrt.installed(monkeypatch))
    fake_tensorrt.forget()


@pytest.mark.parametrize("kind", ["sim", "hstu"])
@pytest.mark.parametrize("plugin", ["library", "embedded"])
def test_plugins_take_every_node_that_reads_a_pool(
    kind: str,
    plugin: str,
    target_attention: Callable[[str], Files],
    hstu: Files,
    embedding: FakeTensorRt,
    tmp_path: Path,
):
    """Names, attributes and namespaces of exported nodes are those that the plugins go by."""
    if plugin == "embedded" and shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    files = hstu if kind == "hstu" else target_attention(kind)
    operator = "PooledPointwiseAttention" if kind == "hstu" else "PooledAttention"
    library = fake_builder.write_library(tmp_path / "lib", ["PoolGatherConcat", operator])
    choice = PluginChoice(plugin, library if plugin == "library" else None)
    for graph in ("prefill", "decode"):
        path = files.folder / f"{graph}.onnx"
        nodes = [n for n in onnx.load(path, load_external_data=False).graph.node if n.domain]
        request = BuildRequest(
            path, files.graphs[graph], files.profile, ("current",), settings=Settings(choice)
        )
        built = build_engine(request, embedding.backend, tmp_path / graph)
        assert built.plugins == tuple(node.name for node in nodes)
        assert built.pool_step == ("plugin" if nodes else "none")
        if plugin == "embedded":
            for node in nodes:
                given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                attributes = embedding.plugins[node.name].attrs
                assert attributes == {n: given[n] for n in attributes}
                assert set(attributes) == {"num_heads", "scale"} & set(given)

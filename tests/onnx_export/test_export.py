"""What stands in an exported file, and that a model always gives the same."""

from __future__ import annotations

import re
import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from ckv_testing.draw import KINDS, draw_cases, draw_state, make_spec
from ckv_testing.exports import Export
from onnx import numpy_helper

from ckv_export import __version__
from ckv_export.contract import AttentionSpec, GraphSpec
from ckv_export.errors import ExportError
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.registry import build_model, build_reference
from ckv_export.onnx_export.check import check_file
from ckv_export.onnx_export.export import example_inputs, example_sizes, export_graph
from ckv_export.onnx_export.save import save_models
from ckv_export.parity.expected import record
from ckv_export.parity.gate import judge, require_pass
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner

Exported = Callable[[str], Export]
GRAPHS = ("prefill", "decode")
BOTH = pytest.mark.parametrize(("kind", "graph"), [(k, g) for k in KINDS for g in GRAPHS])

# DESIGN: what TensorRT for RTX does not parse, and what would leave opset 20's float32 path.
REFUSED_OPERATORS = {
    "ScatterElements", "ScatterND", "NonZero", "Compress", "Unique", "Hardmax", "Attention",
    "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "ArgMax", "Loop", "If", "Scan",
    "SequenceConstruct", "SequenceAt", "SplitToSequence", "ConcatFromSequence",
}  # fmt: skip


def load(made: Export, graph: str) -> onnx.ModelProto:
    return onnx.load(made.folder / f"{graph}.onnx")


def io_of(made: Export, graph: str) -> GraphSpec:
    return next(g.io for g in made.graphs() if g.io.name == graph)


def described(values: list[onnx.ValueInfoProto]) -> list[tuple[str, int, tuple[str | int, ...]]]:
    return [
        (
            v.name,
            v.type.tensor_type.elem_type,
            tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim),
        )
        for v in values
    ]


@BOTH
def test_inputs_and_outputs_are_the_contracts(kind: str, graph: str, exported: Exported):
    made = exported(kind)
    model, io = load(made, graph), io_of(made, graph)
    types = {"int32": onnx.TensorProto.INT32, "bool": onnx.TensorProto.BOOL}
    for got, wanted in ((model.graph.input, io.inputs), (model.graph.output, io.outputs)):
        assert described(got) == [
            (t.name, types.get(t.dtype, onnx.TensorProto.FLOAT), t.axes) for t in wanted
        ]
    assert model.graph.name == graph
    assert (model.producer_name, model.producer_version) == ("ckv-export", __version__)


@BOTH
def test_file_is_valid_and_passes_its_own_check(kind: str, graph: str, exported: Exported):
    made = exported(kind)
    path = made.folder / f"{graph}.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    check_file(path, io_of(made, graph), 1 if graph == "decode" else 0)


@BOTH
def test_only_opset_20_and_our_domain(kind: str, graph: str, exported: Exported):
    made = exported(kind)
    model = load(made, graph)
    versions = {o.domain: o.version for o in model.opset_import}
    assert versions == ({"": 20} if graph == "prefill" else {"": 20, "ckv": 1})
    assert {node.domain for node in model.graph.node} <= {"", "ckv"}
    types = {node.op_type for node in model.graph.node if not node.domain}
    assert not types & REFUSED_OPERATORS
    assert all(not any(a.HasField("g") for a in node.attribute) for node in model.graph.node)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("kind", KINDS)
def test_pools_are_read_by_one_node_of_our_domain(kind: str, exported: Exported):
    """Fused where keys and values are pooled, else a gather for the side that is."""
    made = exported(kind)
    model, attention = load(made, "decode"), made.spec.attention
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    (node,) = [node for node in model.graph.node if node.domain == "ckv"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["plugin_namespace"] == b"ckv"
    assert attributes["plugin_version"] == b"1"
    sides = [side for side in "kv" if attention.shared(side)]
    if len(sides) == 2:
        assert node.op_type == "PooledAttention"
        assert attributes["num_heads"] == attention.num_heads
        scale = (attention.d / attention.num_heads) ** -0.5 if attention.use_scale else 1.0
        assert attributes["scale"] == pytest.approx(scale, rel=1e-6)
        pools = {"k": node.input[1], "v": node.input[4]}
    else:
        assert node.op_type == "PoolGatherConcat"
        assert len(attributes) == 2
        pools = {sides[0]: node.input[0]}
    for side, name in pools.items():
        assert sum(name in n.input for n in model.graph.node) == 1
        pool = made.state[f"attention.0.{side}.pool"].double().numpy()
        # The activation is folded in: silu in fp32 of numbers around 1.
        expected = silu(pool) if attention.use_silu else pool
        np.testing.assert_allclose(weights[name], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_our_operators_travel_as_functions_of_standard_ones(kind: str, exported: Exported):
    made = exported(kind)
    functions = {f.name: f for f in load(made, "decode").functions}
    wanted = {"PoolGatherConcat"}
    if made.spec.attention.shared("k") and made.spec.attention.shared("v"):
        wanted.add("PooledAttention")
    assert set(functions) == wanted
    for function in functions.values():
        assert function.domain == "ckv"
        assert {o.domain: o.version for o in function.opset_import}.items() <= {
            "": 20,
            "ckv": 1,
        }.items()
        inner = {node.op_type for node in function.node if node.domain == "ckv"}
        assert inner <= {"PoolGatherConcat"}
        assert {node.domain for node in function.node} <= {"", "ckv"}
        assert not {node.op_type for node in function.node if not node.domain} & REFUSED_OPERATORS
    assert [n.op_type for n in functions["PoolGatherConcat"].node] == ["Gather", "Concat"]


@BOTH
def test_node_names_are_unique_and_say_where_they_come_from(
    kind: str, graph: str, exported: Exported
):
    nodes = load(exported(kind), graph).graph.node
    counts = Counter(node.name for node in nodes)
    assert max(counts.values()) == 1
    for node in nodes:
        assert re.fullmatch(rf"([A-Za-z0-9_]+/)*{node.op_type}_\d+", node.name), node.name
    modules = {node.name.rpartition("/")[0] for node in nodes}
    assert {"attention/k/user", "attention/v/user"} <= modules
    if graph == "decode":
        assert {"dnn/first/short", "dnn/first/long"} <= modules


@BOTH
def test_nothing_of_this_machine_is_in_the_file(kind: str, graph: str, exported: Exported):
    made = exported(kind)
    model = load(made, graph)
    for weight in model.graph.initializer:
        weight.ClearField("raw_data")  # random bytes spell any short name now and then
    raw = model.SerializeToString()
    here = {
        str(Path(__file__).resolve().parents[2]),
        str(Path.home()),
        str(Path.cwd()),
        sys.prefix,
        torch.__path__[0],
        str(made.folder),
        socket.gethostname(),
    }
    for text in {*here, "site-packages", "stack_trace", ".py", "pkg.torch"} - {"/"}:
        assert text.encode() not in raw, text
    assert not model.doc_string
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    assert not any(v.metadata_props or v.doc_string for v in values)
    assert not model.metadata_props


@BOTH
def test_inner_values_speak_of_the_contracts_axes(kind: str, graph: str, exported: Exported):
    """Sizes of inner values are the axes or sums and minima of them, never invented symbols."""
    values = load(exported(kind), graph).graph.value_info
    texts = {d.dim_param for v in values for d in v.type.tensor_type.shape.dim if d.dim_param}
    assert texts
    for text in texts:
        assert set(re.findall(r"[A-Za-z_]\w*", text)) <= {*"BSKTC", "Min", "Max"}, text


@BOTH
def test_what_is_reduced_is_told_its_shape(kind: str, graph: str, exported: Exported):
    """Some runtimes leave a reduction of nothing as it was."""
    nodes = load(exported(kind), graph).graph.node
    reduced = {n.output[0] for n in nodes if n.op_type.startswith("Reduce")}
    assert reduced
    assert {n.op_type for n in nodes if reduced.intersection(n.input)} == {"Reshape"}


def test_table_that_features_share_is_stored_once(exported: Exported):
    made = exported("sim")
    for graph, readers in (("prefill", ("tags",)), ("decode", ("tags", "item_id"))):
        stored = [numpy_helper.to_array(i) for i in load(made, graph).graph.initializer]
        for name in readers:
            table = made.state[f"embedding.{name}.table"].numpy()
            same = [w for w in stored if w.shape == table.shape and np.array_equal(w, table)]
            assert len(same) == 1, name


def test_weights_go_into_the_file_as_they_are(exported: Exported):
    """Every table bit for bit, and none of the tensors that only another graph reads."""
    made = exported("sim")
    stored = {
        graph: [numpy_helper.to_array(i).tobytes() for i in load(made, graph).graph.initializer]
        for graph in GRAPHS
    }
    for name, tensor in made.state.items():
        if name.endswith(".table"):
            is_users = name in ("embedding.user_id.table", "embedding.topics.table")
            raw = tensor.numpy().tobytes()
            assert raw in stored["decode"]
            assert (raw in stored["prefill"]) == (not is_users)


# -- exporting


def test_same_model_gives_the_same_bytes(exported: Exported, tmp_path: Path):
    made = exported("sdim")
    made.save(tmp_path)
    for graph in GRAPHS:
        first, second = (f / f"{graph}.onnx" for f in (made.folder, tmp_path))
        assert first.read_bytes() == second.read_bytes()


def test_smallest_window_is_empty_before_the_first_event(tmp_path: Path):
    """W = 2: its size is 0 or 1, neither of which may be taken for a constant.

    Without a pool for V the heads are split in the graph, not within an operator of ours.
    """
    attention = AttentionSpec(16, 4, 2, 16, 10, 0)
    spec = make_spec("sim", window=2, mask_alignment="fuxictr", attention=attention)
    state = draw_state(spec, np.random.default_rng(0))
    model = build_model(spec, state)
    graphs = PrefillGraph(model), DecodeGraph(model)
    save_models({graph.io.name: export_graph(graph) for graph in graphs}, tmp_path)
    runners = [OnnxRuntimeRunner(tmp_path / f"{g.io.name}.onnx", g.io, threads=1) for g in graphs]
    cases = record(build_reference(spec, state), draw_cases(spec, 0))
    assert {0, 1} <= {case.case.cached + case.case.appended for case in cases}
    require_pass(judge(spec, runners[0], runners[1], cases))


def test_example_sizes_are_all_different_and_exceed_every_boundary():
    settings = [(None, 0), (2, 0), (6, 0), (5, 3), (8, 8), (9, 1), (50, 50), (1000, 3), (3, 4000)]
    for window, topk in settings:
        sizes = example_sizes(window, topk)
        assert len(set(sizes.values())) == len(sizes)
        assert min(sizes.values()) >= 2
        assert sizes["S"] > max(window or 0, topk)
        assert sizes["K"] >= (window or 1) - 1
        assert sizes["K"] + sizes["T"] not in sizes.values()
        assert sizes["S"] + sizes["T"] > sizes["S"]


@pytest.mark.parametrize("longest", [{"window": 30}, {"topk": 30}])
def test_more_events_are_traced_than_the_model_has_in_its_window_or_selects(
    longest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    traced: list[torch.Tensor] = []

    def trace(graph: DecodeGraph, inputs: tuple[torch.Tensor, ...], **_: Any) -> None:
        traced.extend(inputs)
        raise RuntimeError("enough")

    monkeypatch.setattr(torch.onnx, "export", trace)
    spec = make_spec("sim", **longest)
    graph = DecodeGraph(build_model(spec, draw_state(spec, np.random.default_rng(0))))
    with pytest.raises(ExportError, match="enough"):
        export_graph(graph)
    shapes = {t.name: given.shape for t, given in zip(graph.io.inputs, traced, strict=True)}
    assert shapes["history_mask"][1] > 30


def test_example_inputs_are_zeros_of_the_contract():
    model = build_model(make_spec("sim"), draw_state(make_spec("sim"), np.random.default_rng(0)))
    graph = PrefillGraph(model)
    inputs = example_inputs(graph.io, {"B": 2, "S": 3})
    assert [tuple(t.shape) for t in inputs] == [(2, 3)] * 3
    assert [t.dtype for t in inputs] == [torch.int32, torch.int32, torch.bool]
    assert not any(t.any() for t in inputs)


@pytest.mark.parametrize(
    ("error", "says"), [(RuntimeError("no such"), "no such"), (ValueError(), "ValueError()")]
)
def test_graph_that_cannot_be_exported_is_one_sentence(error: Exception, says: str):
    class Broken(PrefillGraph):
        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            raise error

    spec = make_spec("sim")
    model = build_model(spec, draw_state(spec, np.random.default_rng(0)))
    with pytest.raises(ExportError) as told:
        export_graph(Broken(model))
    assert str(told.value) == f"PyTorch can't export the prefill graph: {says}"

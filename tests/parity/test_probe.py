"""Inner tensors of a small graph: asked for, given, and found by the names of their nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ckv_export.parity.probe import GraphProbe, top_margin

FEEDS = {"x": np.array([[1.0, 2.0]], np.float32)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The logits of a router with a bias, and their negatives."""
    weights = {"w": np.eye(2, dtype=np.float32), "b": np.array([10, 20], np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="layers/7/k/router/logits/MatMul_0"),
        helper.make_node("Add", ["m", "b"], ["n"], name="layers/7/k/router/logits/Add_0"),
        helper.make_node("Neg", ["n"], ["y"], name="layers/0/v/router/Neg_0"),
    ]
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 2])] for n in "xy"]
    held = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends, held), opset_imports=opset, ir_version=10
    )
    onnx.save(model, tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def test_tensors_are_given_by_name_in_any_order_and_twice(path: Path):
    found = GraphProbe(path).run(FEEDS, ["y", "n", "m", "n"])
    wanted = {"y": [[-11, -22]], "n": [[11, 22]], "m": [[1, 2]]}
    assert {name: array.tolist() for name, array in found.items()} == wanted


def test_tensor_that_is_given_is_what_the_nodes_behind_it_read(path: Path):
    probe = GraphProbe(path)
    given = {"n": np.array([[5.0, 6.0]], np.float32)}
    found = probe.run(FEEDS, ["m", "n", "y"], given)
    assert {n: a.tolist() for n, a in found.items()} == {
        "m": [[1, 2]], "n": [[5, 6]], "y": [[-5, -6]]
    }  # fmt: skip
    assert probe.run(FEEDS, ["y"])["y"].tolist() == [[-11, -22]], "of that run alone"


def test_weights_beside_the_file_are_read_from_where_they_lie(path: Path):
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (path.parent / "weights.bin").exists()
    assert GraphProbe(path).run(FEEDS, ["y"])["y"].tolist() == [[-11, -22]]


def test_a_margin_is_the_lead_of_the_best():
    logits = np.array([[[0, 1, 3], [5, 1, 0], [4, 0, 4], [2, 2, 2]], 4 * [[9, 7, 8]]], np.float32)
    assert top_margin(logits).tolist() == [[2, 4, 0, np.inf], [1, 1, 1, 1]]


def test_logits_are_those_behind_the_bias(path: Path):
    probe = GraphProbe(path)
    assert (probe.router_logits("k"), probe.router_logits("v")) == ({7: "n"}, {})


def test_optimisations_are_left_out_where_asked(path: Path, monkeypatch: pytest.MonkeyPatch):
    levels, session = [], onnxruntime.InferenceSession

    def opened(content: bytes, options: Any, **more: Any) -> Any:
        levels.append(options.graph_optimization_level)
        return session(content, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    for optimised in (True, False):
        GraphProbe(path, optimised).run(FEEDS, ["y"])
    kinds = onnxruntime.GraphOptimizationLevel
    assert levels == [kinds.ORT_ENABLE_ALL, kinds.ORT_DISABLE_ALL]

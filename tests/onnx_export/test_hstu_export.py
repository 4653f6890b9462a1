"""HSTU as ONNX files: what reads its pools, and that ONNX Runtime computes what PyTorch does."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from ckv_testing.hstu import SPEC, exported_hstu
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.contract import ModelSpec
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.registry import build_model, build_reference
from ckv_export.parity.expected import ExpectedCase, record
from ckv_export.parity.gate import judge, require_pass
from ckv_export.parity.inputs import CaseSize, generate, generate_case
from ckv_export.parity.tolerances import tolerance_of
from ckv_export.runtimes.base import Arrays, Runner
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner
from ckv_export.runtimes.torch import TorchRunner

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclasses.dataclass(frozen=True)
class Exported:
    """A drawn HSTU, its graphs in PyTorch, and their files in ONNX Runtime."""

    state: Mapping[str, Tensor]
    folder: Path
    torch: tuple[Runner, Runner]
    ort: tuple[Runner, Runner]


@pytest.fixture(scope="session")
def hstu(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The session's one export of HSTU, which tests/engine builds engines of."""
    folder = exported_hstu(tmp_path_factory.getbasetemp())
    loaded = load_checkpoint(folder / "hstu.pt")
    assert loaded.spec == SPEC
    model = build_model(loaded.spec, loaded.state)
    graphs = PrefillGraph(model), DecodeGraph(model)
    in_torch = tuple(TorchRunner(g, g.io) for g in graphs)
    in_ort = tuple(OnnxRuntimeRunner(folder / f"{g.io.name}.onnx", g.io, threads=1) for g in graphs)
    return Exported(loaded.state, folder, in_torch, in_ort)


# -- the files


@pytest.mark.parametrize(("graph", "layers"), [("prefill", 1), ("decode", 2)])
def test_each_layer_but_prefills_last_reads_its_two_pools(hstu: Exported, graph: str, layers: int):
    """By nodes of our domain, each pool in one place: an entry needs the layers below, not its."""
    model = onnx.load(hstu.folder / f"{graph}.onnx")
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    ours = [node for node in model.graph.node if node.domain == "ckv"]
    found = [weights[name] for node in ours for name in node.input if name in weights]
    pools = [hstu.state[f"attention.{i}.{side}.pool"] for i in range(layers) for side in "kv"]
    assert len(found) == len(pools) == 2 * layers
    for got, pool in zip(found, pools, strict=True):
        np.testing.assert_allclose(got, F.silu(pool), rtol=1e-6, atol=1e-7)
    names = [name for node in ours for name in node.input if name in weights]
    for name in names:
        assert sum(name in node.input for node in model.graph.node) == 1
    bodies = {(f.domain, f.name) for f in model.functions}
    assert {("ckv", node.op_type) for node in ours} <= bodies


def test_biases_of_all_layers_but_prefills_last_are_in_the_files(hstu: Exported):
    for graph, layers in (("prefill", 1), ("decode", 2)):
        model = onnx.load(hstu.folder / f"{graph}.onnx")
        stored = [numpy_helper.to_array(i).ravel() for i in model.graph.initializer]
        for layer in range(2):
            for table in ("position_bias", "time_bias"):
                bias = hstu.state[f"attention.{layer}.{table}"].numpy()
                found = sum(np.array_equal(bias, values) for values in stored)
                assert found == (layer < layers), (graph, layer, table)


# -- what they compute


def clear(case: ExpectedCase) -> bool:
    """Whether no row was a close call: after a flip all later layers are another's.

    Padding ties all rows, exactly and in every runtime.
    """
    return all(((m == 0) | (m > 1e-5)).all() for m in case.margins.values())


def test_onnxruntime_passes_the_gate(hstu: Exported, seed: int):
    cases = record(build_reference(SPEC, hstu.state), generate(SPEC, seed))
    judged = [case for case in cases if clear(case)]
    assert len(judged) > len(cases) / 2
    for runners in (hstu.torch, hstu.ort):
        outcome = judge(SPEC, *runners, judged)
        require_pass(outcome)
        assert any("in two chunks" in result.case for result in outcome.results)


def assert_alike(got: Arrays, expected: Arrays) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        if name.endswith("_index"):
            np.testing.assert_array_equal(got[name], array, err_msg=name)
        else:
            bound = tolerance_of(name, SPEC.num_layers)
            np.testing.assert_allclose(
                got[name], array, rtol=bound.relative, atol=bound.absolute, err_msg=name
            )


def drawn_feeds(runner: Runner, sizes: Mapping[str, int], rng: np.random.Generator) -> Arrays:
    """Inputs of any sizes: a request's features, and a cache of anything a cache may hold."""
    past = sizes["S"] if runner.io.name == "decode" else sizes["K"]
    new = sizes["T"] if runner.io.name == "decode" else sizes["S"]
    size = CaseSize("drawn", sizes["B"], past, new, sizes["C"], "holes")
    inputs = generate_case(SPEC, size, rng).inputs if sizes["B"] else {}
    groups = {"past": "history", "event": "append"}
    feeds: Arrays = {}
    for tensor in runner.io.inputs:
        group, name = tensor.name.split("_", 1)
        shape, rows = tensor.shape(sizes), getattr(SPEC.attention, f"pool_rows_{name[0]}", 0)
        given = inputs.get(f"{groups.get(group, group)}_{name}")
        if name.endswith("_index") and rows:
            given = rng.integers(0, rows, shape)
        elif given is None:
            given = rng.standard_normal(shape)
        feeds[tensor.name] = np.ascontiguousarray(given.reshape(shape).astype(tensor.dtype))
    return feeds


@pytest.mark.parametrize("graph", [0, 1], ids=["prefill", "decode"])
def test_onnxruntime_computes_what_pytorch_does_at_every_size(
    hstu: Exported, graph: int, rng: np.random.Generator
):
    """None of the axes may be one that was traced."""
    in_torch, in_ort = hstu.torch[graph], hstu.ort[graph]
    used = {axis for t in in_torch.io.inputs for axis in t.axes if isinstance(axis, str)}
    choices = {"B": (0, 1, 3), "S": (0, 1, 6), "K": (0, 1, 5), "T": (0, 1, 3), "C": (0, 1, 4)}
    axes = [axis for axis in choices if axis in used]
    compared = 0
    with in_torch, in_ort:
        for chosen in itertools.product(*(choices[axis] for axis in axes)):
            sizes = dict.fromkeys(choices, 1) | dict(zip(axes, chosen, strict=True))
            print(sizes)
            feeds = drawn_feeds(in_torch, sizes, rng)
            got, expected = in_ort.infer(feeds), in_torch.infer(feeds)
            assert_alike(got, expected)
            assert all(np.isfinite(a).all() for a in got.values())
            compared += sum(a.size for a in got.values())
    assert compared > 500


def chunked(prefill: Runner, inputs: Arrays, cuts: Iterable[int]) -> Arrays:
    """The cache of a history, prefilled from cut to cut on what the runtime itself returned."""
    users = inputs["history_mask"].shape[0]
    sizes = {"B": users, "S": 0}
    cache = {t.name: np.zeros(t.shape(sizes), t.dtype) for t in prefill.io.outputs}
    for start, end in itertools.pairwise(cuts):
        known = {n.replace("cache_", "past_", 1): a for n, a in cache.items()}
        for name, array in inputs.items():
            if name.startswith("history_"):
                known[name.replace("history_", "past_", 1)] = array[:, :start]
                known[name.replace("history_", "event_", 1)] = array[:, start:end]
        feeds = {t.name: np.ascontiguousarray(known[t.name]) for t in prefill.io.inputs}
        new = prefill.infer(feeds)
        cache = {n: np.concatenate([a, new[n]], axis=2) for n, a in cache.items()}
    return cache


def test_onnxruntime_prefills_in_chunks_of_any_size(hstu: Exported, rng: np.random.Generator):
    inputs = generate_case(SPEC, CaseSize("long", 2, 24, 0, 2, "holes"), rng).inputs
    in_torch, in_ort = hstu.torch[0], hstu.ort[0]
    with in_torch, in_ort:
        expected = chunked(in_torch, inputs, [0, 24])
        cuts = sorted(int(c) for c in rng.integers(0, 25, 4))
        print(cuts)
        for chosen in ([0, 24], range(25), [0, 0, *cuts, 24, 24]):
            assert_alike(chunked(in_ort, inputs, chosen), expected)


def test_specification_is_the_one_that_was_exported(hstu: Exported):
    """With times, user features, and more than one layer: what the tests above are about."""
    spec: ModelSpec = load_checkpoint(hstu.folder / "hstu.pt").spec
    assert spec.timestamp is not None
    assert spec.num_layers == 2
    assert spec.user_features

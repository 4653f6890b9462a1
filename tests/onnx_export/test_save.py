"""Weights inside the file or in one file beside it: same contents, same results."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from ckv_export.onnx_export import save
from ckv_export.onnx_export.save import WEIGHTS_FILE, save_models

LEAST = save._LEAST_EXTERNAL
ALIGNMENT = save._ALIGNMENT


def made(**weights: np.ndarray) -> ir.Model:
    """A graph that adds up its input x [N] and all its weights."""
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    terms = ["x", *weights]
    graph = helper.make_graph(
        [
            *(helper.make_node("ReduceSum", [t], [f"sum_{t}"], keepdims=0) for t in terms),
            helper.make_node("Sum", [f"sum_{t}" for t in terms], ["y"]),
        ],
        "sums",
        [helper.make_tensor_value_info("x", float32, ["N"])],
        [helper.make_tensor_value_info("y", float32, [])],
        [onnx.numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    opset = helper.make_opsetid("", 20)
    return ir.serde.deserialize_model(
        helper.make_model(graph, opset_imports=[opset], ir_version=10)
    )


def numbers(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(-8, 9, count).astype(np.float32)


def run(path: Path) -> float:
    session = onnxruntime.InferenceSession(str(path))
    return float(session.run(None, {"x": np.array([1.0, 2.0], np.float32)})[0])


def stored(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and length of each weight that lies outside, as written in the file."""
    model = onnx.load(path, load_external_data=False)
    places = {}
    for tensor in model.graph.initializer:
        data = {entry.key: entry.value for entry in tensor.external_data}
        if data:
            assert data["location"] == WEIGHTS_FILE
            places[tensor.name] = (int(data["offset"]), int(data["length"]))
    return places


@pytest.fixture
def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two large ones, one just large enough to go outside, one just too small for it."""
    sizes = {"a": 3 * LEAST, "b": LEAST // 4 + 1, "c": LEAST // 4, "d": LEAST // 4 - 1}
    return {name: numbers(rng, size) for name, size in sizes.items()}


def test_small_models_are_single_files(weights: dict[str, np.ndarray], tmp_path: Path):
    files = save_models({"prefill": made(**weights), "decode": made(a=weights["a"])}, tmp_path)
    assert files == [tmp_path / "prefill.onnx", tmp_path / "decode.onnx"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["decode.onnx", "prefill.onnx"]
    assert run(files[0]) == 3 + sum(w.sum(dtype=np.float64) for w in weights.values())
    assert run(files[1]) == 3 + weights["a"].sum(dtype=np.float64)


@pytest.mark.parametrize("beyond", [0, 1])
def test_limit_is_the_largest_size_of_a_single_file(
    beyond: int, weights: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    size = sum(w.nbytes for w in weights.values())
    monkeypatch.setattr(save, "INLINE_LIMIT", size - beyond)
    save_models({"decode": made(**weights)}, tmp_path)
    assert (tmp_path / WEIGHTS_FILE).exists() == bool(beyond)


@pytest.fixture
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "INLINE_LIMIT", 0)


@pytest.mark.usefixtures("no_limit")
def test_large_weights_lie_outside_and_small_ones_inside(
    weights: dict[str, np.ndarray], tmp_path: Path
):
    files = save_models({"decode": made(**weights)}, tmp_path)
    assert files == [tmp_path / "decode.onnx", tmp_path / WEIGHTS_FILE]
    places = stored(files[0])
    assert set(places) == {"a", "b", "c"}
    data = (tmp_path / WEIGHTS_FILE).read_bytes()
    for name, (offset, length) in places.items():
        assert offset % ALIGNMENT == 0
        assert data[offset : offset + length] == weights[name].tobytes()
    ends = sorted((offset, offset + length) for offset, length in places.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
    assert len(data) == ends[-1][1]
    assert run(files[0]) == 3 + sum(w.sum(dtype=np.float64) for w in weights.values())
    onnx.checker.check_model(str(files[0]), full_check=True)


@pytest.mark.usefixtures("no_limit")
def test_weights_that_graphs_share_are_stored_once(
    weights: dict[str, np.ndarray], rng: np.random.Generator, tmp_path: Path
):
    own = numbers(rng, LEAST)
    models = {
        "prefill": made(a=weights["a"], other=weights["b"]),
        "decode": made(z=weights["a"].copy(), b=weights["b"], own=own),
    }
    files = save_models(models, tmp_path)
    prefill, decode = stored(files[0]), stored(files[1])
    assert prefill["a"] == decode["z"]
    assert prefill["other"] == decode["b"]
    assert decode["own"][0] not in (decode["z"][0], decode["b"][0])
    total = weights["a"].nbytes + weights["b"].nbytes + own.nbytes
    assert total <= (tmp_path / WEIGHTS_FILE).stat().st_size < total + 3 * ALIGNMENT
    assert run(files[0]) == 3 + weights["a"].sum() + weights["b"].sum()
    assert run(files[1]) == 3 + weights["a"].sum() + weights["b"].sum() + own.sum()


@pytest.mark.usefixtures("no_limit")
def test_equal_weights_of_one_model_are_stored_once(tmp_path: Path):
    zeros = np.zeros(LEAST, np.float32)
    other = zeros.copy()
    other[-1] = 1.0
    files = save_models({"one": made(a=zeros, b=zeros.copy(), c=other)}, tmp_path)
    places = stored(files[0])
    assert places["a"] == places["b"] != places["c"]
    assert run(files[0]) == 3 + 1


@pytest.mark.usefixtures("no_limit")
def test_weights_outside_keep_their_type_and_order(rng: np.random.Generator, tmp_path: Path):
    """Half precisions too, and a matrix that lies turned in memory."""
    turned = rng.standard_normal((LEAST, 3)).astype(np.float16).T
    model = made(a=np.zeros(turned.shape, np.float16))
    model.graph.initializers["a"].const_value = ir.tensor(turned, name="a")
    files = save_models({"one": model}, tmp_path)
    assert set(stored(files[0])) == {"a"}
    (read,) = onnx.load(files[0]).graph.initializer
    assert read.data_type == onnx.TensorProto.FLOAT16
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(read), turned)


@pytest.mark.usefixtures("no_limit")
def test_one_large_model_moves_the_weights_of_all(
    weights: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(save, "INLINE_LIMIT", weights["a"].nbytes)
    models = {"prefill": made(b=weights["b"]), "decode": made(**weights)}
    files = save_models(models, tmp_path)
    assert stored(files[0])["b"] == stored(files[1])["b"]


@pytest.mark.parametrize("kind", ["sim", "sdim"])
def test_exported_models_with_weights_outside_give_the_same_results(
    kind: str, exported: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The real graphs, all but scalars and shapes outside, against the single files: same bits."""
    here = exported(kind)
    models = {n: ir.load(here.folder / f"{n}.onnx") for n in ("prefill", "decode")}
    monkeypatch.setattr(save, "INLINE_LIMIT", 0)
    monkeypatch.setattr(save, "_LEAST_EXTERNAL", 64)
    save_models(models, tmp_path)
    assert len(stored(tmp_path / "decode.onnx")) > 3
    outputs = []
    for folder in (here.folder, tmp_path):
        got = []
        for runner in here.runners(folder):
            rng = np.random.default_rng(7)
            sizes = {"B": 3, "S": 9, "K": 4, "T": 2, "C": 5}
            feeds = {
                t.name: rng.integers(0, 2, t.shape(sizes)).astype(t.dtype) for t in runner.io.inputs
            }
            with runner:
                got.append(runner.infer(feeds))
        outputs.append(got)
    for inline, outside in zip(*outputs, strict=True):
        for name, array in inline.items():
            np.testing.assert_array_equal(outside[name], array, err_msg=name)

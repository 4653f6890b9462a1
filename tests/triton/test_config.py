"""Configurations are Triton's: its schema reads them, and they say what the graphs take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from ckv_testing.records import MANIFESTS
from ckv_testing.serving import Shop

from ckv_export.cache.item_table import load_item_table
from ckv_export.errors import BundleError, MissingDependency
from ckv_export.manifest import Manifest
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner
from ckv_export.serving import request_tensors
from ckv_export.triton.config import GraphModel, ScorerModel, graph_config, parse_config
from ckv_export.triton.config import scorer_config as write_scorer_config
from ckv_export.triton.constants import bake, without_constants
from ckv_export.triton.library import library_files
from ckv_export.triton.settings import Settings

pytest.importorskip("tritonclient.grpc", reason="the package tritonclient is not installed")

TYPES = {
    "int32": 8,
    "int64": 9,
    "float32": 11,
    "bool": 1,
    "string": 13,
}  # DataType of model_config.proto


def model(manifest: Manifest, graph: str, platform: str = "onnx") -> GraphModel:
    sizes = {axis: r.opt for axis, r in manifest.profile.axes.items()}
    return GraphModel("toy_decode", manifest.graph(graph), platform, 64, sizes)


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("graph", ["prefill", "decode"])
def test_every_tensor_stands_there_without_its_batch_axis(name: str, graph: str):
    manifest = MANIFESTS[name]
    config = parse_config(graph_config(model(manifest, graph)))
    io = manifest.graph(graph)
    assert [t.name for t in config.input] == [t.name for t in io.inputs]
    assert [t.name for t in config.output] == [t.name for t in io.outputs]
    for message, tensor in zip([*config.input, *config.output], io.tensors(), strict=True):
        assert message.data_type == TYPES[tensor.dtype]
        dims = [-1 if isinstance(axis, str) else axis for axis in tensor.axes[1:]]
        assert list(message.dims) == (dims or [1])
        assert message.HasField("reshape") == (not dims)
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")
    assert config.max_batch_size == 64
    assert list(config.dynamic_batching.preferred_batch_size) == [64]
    for warmup in config.model_warmup:
        assert set(warmup.inputs) == {t.name for t in io.inputs}
        for tensor in io.inputs:
            made = warmup.inputs[tensor.name]
            usual = [
                manifest.profile.axes[a].opt if isinstance(a, str) else a for a in tensor.axes[1:]
            ]
            assert list(made.dims) == (usual or [1])
            assert (made.data_type, made.zero_data) == (TYPES[tensor.dtype], True)
    assert [w.batch_size for w in config.model_warmup] == [1, 64]


def test_plans_are_chosen_by_compute_capability_and_run_in_a_profile():
    chosen = model(MANIFESTS["HSTU"], "decode", "tensorrt")
    plans = {"8.6": "model.plan", "12.0": "model_1.plan"}
    text = graph_config(GraphModel(**{**vars(chosen), "plans": plans, "instances": 2}))
    config = parse_config(text)
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    assert dict(config.cc_model_filenames) == plans
    [group] = config.instance_group
    assert list(group.profile) == ["0"]
    assert (group.kind, group.count) == (group.KIND_GPU, 2)


@pytest.mark.parametrize("name", MANIFESTS)
def test_orchestrating_model_takes_requests_of_any_size_together(name: str):
    manifest = MANIFESTS[name]
    graph = "decode_items" if manifest.item_table else "decode"
    tensors = request_tensors(manifest, graph)
    settings = Settings("redis://h/0", graph, None, "float16", 50, 2)
    config = parse_config(
        write_scorer_config(ScorerModel("toy", tensors, 64, settings.parameters(), 3, 500))
    )
    inputs = {t.name: t for t in config.input}
    assert set(inputs) == {"user_id", "append_id", "append_mask", *(t.name for t in tensors)}
    for tensor in tensors:
        message = inputs[tensor.name]
        assert message.allow_ragged_batch
        assert message.optional == tensor.name.startswith("append_")
        assert not message.HasField("reshape")
        assert len(message.dims) == max(len(tensor.axes), 1)
    others = {
        n: (m.data_type, list(m.dims), m.optional, m.allow_ragged_batch)
        for n, m in inputs.items()
        if n in ("user_id", "append_id", "append_mask")
    }
    assert others == {
        "user_id": (TYPES["string"], [1], False, False),
        "append_id": (TYPES["string"], [1], True, False),
        "append_mask": (TYPES["bool"], [-1], True, True),
    }
    outputs = [(m.name, m.data_type, list(m.dims)) for m in config.output]
    assert outputs == [("score", TYPES["float32"], [-1]), ("events", TYPES["int64"], [1])]
    assert config.max_batch_size == 64
    assert list(config.dynamic_batching.preferred_batch_size) == [64]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    [group] = config.instance_group
    assert (group.kind, group.count) == (group.KIND_CPU, 3)
    parameters = {n: p.string_value for n, p in config.parameters.items()}
    assert Settings.of(parameters) == settings


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_batch: 3", "max_batch"),
        ("input { name: 'x' data_type: TYPE_FP33 dims: 1 }", "TYPE_FP33"),
        ("name: ", "Expected string"),
    ],
)
def test_schema_refuses_what_it_does_not_know(text: str, says: str):
    with pytest.raises(BundleError, match=says):
        parse_config(text)


def test_a_missing_schema_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc.model_config_pb2", None)
    with pytest.raises(MissingDependency, match=r"pip install 'ckv-export\[triton\]'"):
        graph_config(model(MANIFESTS["HSTU"], "decode"))


def test_settings_without_limits_say_none():
    settings = Settings("sqlite:///u.db", "decode", "toy_decode")
    assert "max_events" not in settings.parameters()
    assert Settings.of(settings.parameters()) == settings


# -- the copy of this package


def test_the_copy_needs_numpy_and_nothing_else(tmp_path: Path):
    for path, text in library_files().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    program = f"""
import importlib.abc, importlib.machinery, json, sys
sys.path.insert(0, {str(tmp_path)!r})

class OnlyNumpy(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "ckv_export"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, OnlyNumpy())
import types
sys.modules["triton_python_backend_utils"] = types.ModuleType("utils")
import ckv_export.triton.model
modules = {{n: m.__file__ for n, m in sys.modules.items() if n.startswith("ckv_export")}}
print(json.dumps(modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout)
    assert all(file.startswith(str(tmp_path)) for file in modules.values())
    copied = {p.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
              for p in library_files()}  # fmt: skip
    assert copied == set(modules)


# -- an item table within its graph


def test_a_baked_table_scores_as_a_given_one(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator
):
    shop = shops("items")
    table, io = load_item_table(shop.folder), shop.manifest.graph("decode_items")
    other = {"another graph's": np.ones(3, np.float32)}
    bake(shop.folder / "decode_items.onnx", other | table, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    assert {i.name for i in graph.input} == {t.name for t in io.inputs} - set(table)
    baked = {i.name: {e.key: e.value for e in i.external_data} for i in graph.initializer}
    assert other.keys().isdisjoint(baked)
    assert all(int(baked[name]["offset"]) % 64 == 0 for name in table), "to be mapped, not copied"
    served = OnnxRuntimeRunner(tmp_path / "model.onnx", without_constants(io), threads=1)
    plain = OnnxRuntimeRunner(shop.folder / "decode_items.onnx", io, threads=1)
    sizes = {"B": 3, "S": 7, "T": 2, "C": 4}
    feeds = {}
    for tensor in served.io.inputs:
        most = 2 if tensor.dtype == "bool" else 5
        feeds[tensor.name] = rng.integers(0, most, tensor.shape(sizes)).astype(tensor.dtype)
    with served, plain:
        got, wanted = served.infer(feeds)["score"], plain.infer(feeds | table)["score"]
    np.testing.assert_array_equal(got, wanted)
    assert np.ptp(wanted) > 1e-4

"""Layers of networks and engines: types, precisions, parts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckv_export.engine import Backend, build_engine
from ckv_export.engine.layers import (
    NETWORK,
    Layer,
    LayerReport,
    inspected_layers,
    network_layers,
    onnx_nodes,
    part_of,
)


def test_parts_are_modules_without_their_numbers():
    assert part_of("layers/0/attention/k/router/MatMul_0") == "layers/attention/k/router"
    assert part_of("MatMul_0") == "(top level)"


@pytest.mark.parametrize(
    ("metadata", "nodes"),
    [
        ("", ()),
        ("[ONNX Layer: a/MatMul_0]", ("a/MatMul_0",)),
        ("[ONNX Layer: a]\x1e[ONNX Layer: b]\x1e[ONNX Layer: a]", ("a", "b")),
        ("[ONNX Layer: rows | x/Pool_0 (PoolGatherConcat)]", ("x/Pool_0",)),
        ("[ONNX Layer: rows | key (PoolGatherConcat) | Att_0 (PooledAttention)]", ("Att_0",)),
    ],
)
def test_nodes_of_a_layer(metadata: str, nodes: tuple[str, ...]):
    assert onnx_nodes(metadata) == nodes


def entry(name: str, kind: str, *formats: str) -> dict[str, object]:
    outputs = [{"Name": f"{name}{i}", "Format/Datatype": f} for i, f in enumerate(formats)]
    return {
        "Name": name,
        "LayerType": kind,
        "Outputs": outputs,
        "Metadata": f"[ONNX Layer: m/{name}]",
    }


def test_inspected_layers_of_several_vocabularies():
    """TensorRT 8 to 11 name formats differently, and 11 renamed the bindings."""
    data = {
        "Layers": [
            entry("a", "gemm", "Row major linear FP16 format", "Int32"),
            entry("b", "kgen", "Float"),
            entry("c", "PluginV3", "BFloat16"),
            entry("d", "Reformat", "Half"),
            entry("e", "Shuffle"),
        ],
        "I/O Tensors": [],
    }
    layers, raw = inspected_layers(json.dumps(data))
    assert [layer.precisions for layer in layers] == [
        ("fp16",),
        ("fp32",),
        ("bf16",),
        ("fp16",),
        (),
    ]
    assert [layer.is_plugin for layer in layers] == [False, False, True, False, False]
    assert raw == data
    report = LayerReport("engine", layers, {"m/c": "plugin"}, raw)
    assert report.parts == {"(pool step)": {"bf16": 1}, "m": {"fp16": 2, "fp32": 1}}
    assert LayerReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_types_and_parts_are_counted():
    layers = (
        Layer("a", "gemm", ("m/a", "m/0/b"), ("fp16",)),
        Layer("b", "kgen", ("m/c", "n/c"), ("fp16", "fp32")),
        Layer("c", "kgen", ("whole/numbers",), ()),
    )
    report = LayerReport("engine", layers)
    assert list(report.types.items()) == [("kgen", 2), ("gemm", 1)]
    assert report.parts == {"m": {"fp16": 2, "fp32": 1}, "n": {"fp16": 1, "fp32": 1}}


@pytest.mark.parametrize("name", ["FP8", "FP4"])
def test_a_precision_that_nobody_asks_for_is_seen(name: str):
    ((layer,), _) = inspected_layers(json.dumps({"Layers": [entry("a", "gemm", name)]}))
    assert layer.precisions == (name.lower(),)


def test_a_constant_says_nothing_of_how_the_model_computes():
    def layer(kind: str) -> SimpleNamespace:
        output = SimpleNamespace(dtype=SimpleNamespace(name="FLOAT"))
        return SimpleNamespace(
            name=kind,
            type=SimpleNamespace(name=kind),
            num_outputs=1,
            get_output=lambda i: output,
            metadata=f"[ONNX Layer: m/{kind}]",
        )

    made = [layer("CONSTANT"), layer("SOFTMAX")]
    network = SimpleNamespace(num_layers=len(made), get_layer=made.__getitem__)
    assert network_layers(network) == (
        Layer("CONSTANT", "CONSTANT", ("m/CONSTANT",), ()),
        Layer("SOFTMAX", "SOFTMAX", ("m/SOFTMAX",), ("fp32",)),
    )


def test_layer_names_alone_tell_no_types():
    layers, _ = inspected_layers(json.dumps({"Layers": ["a + b"]}))
    assert layers == (Layer("a + b", "unknown"),)
    layers, _ = inspected_layers(json.dumps({"Layers": [{"Name": "a", "Outputs": ["y"]}]}))
    assert layers == (Layer("a", "unknown"),)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": 3}'])
def test_no_inspectors_json(text: str):
    with pytest.raises(ValueError, match=r"list of layers|Expecting value"):
        inspected_layers(text)


@pytest.mark.tensorrt
def test_the_network_speaks_where_no_engine_can_be_loaded(
    rtx: Backend, projection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ckv_export.engine.inspection.present_gpu", lambda: None)
    built = build_engine(projection.request(targets=("sm86",)), rtx, tmp_path / "e")
    assert built.report is not None
    assert (built.report.source, built.report.inspector) == (NETWORK, None)
    assert built.report.parts == {"(top level)": {"fp32": 1}}
    assert (built.pool_step, len(built.report.layers)) == ("none", built.layers)

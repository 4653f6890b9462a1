"""A built engine is read where it can be loaded, and must hold what it was built for."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from ckv_export.engine import Backend, PluginChoice
from ckv_export.engine.inspection import report
from ckv_export.engine.layers import ENGINE, NETWORK, Layer, LayerReport
from ckv_export.engine.messages import Messages
from ckv_export.errors import EngineError

STEPS = {"layers/0/key": "plugin", "layers/1/key": "plugin"}
NETWORK_LAYERS = (Layer("MatMul", "MATRIX_MULTIPLY"),)
EMBEDDED, NATIVE = PluginChoice("embedded"), PluginChoice()


class Runtime:
    """Loads an engine whose inspector says `told`; none where that is None."""

    def __init__(self, told: dict[str, Any] | str | None) -> None:
        self.told = told
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        assert plan == b"plan"
        assert self.engine_host_code_allowed
        text = json.dumps(self.told) if isinstance(self.told, dict) else self.told
        inspector = SimpleNamespace(get_engine_information=lambda form: text or None)
        return (
            None
            if self.told is None
            else SimpleNamespace(create_engine_inspector=lambda: inspector)
        )


def read(
    told: dict[str, Any] | str | None,
    name: str = "tensorrt",
    steps: dict[str, str] = STEPS,
    choice: PluginChoice = EMBEDDED,
    *errors: str,
) -> LayerReport:
    module = SimpleNamespace(
        Runtime=lambda logger: Runtime(told), LayerInformationFormat=SimpleNamespace(JSON="json")
    )
    backend = Backend(name, module, "1.7")  # type: ignore[arg-type]
    parsed: Any = SimpleNamespace(layer_list=lambda: NETWORK_LAYERS)
    messages = Messages(errors=list(errors))
    return report(b"plan", parsed, steps, choice, backend, ("sm86", "sm120"), None, messages)


def engine(*types: str) -> dict[str, Any]:
    return {"Layers": [{"Name": f"layer {i}", "LayerType": t} for i, t in enumerate(types)]}


@pytest.mark.parametrize(
    ("name", "gpu", "source"),
    [
        ("tensorrt", None, ENGINE),
        ("tensorrt_rtx", "sm120", ENGINE),
        ("tensorrt_rtx", "sm89", NETWORK),
        ("tensorrt_rtx", None, NETWORK),
    ],
)
def test_the_engine_is_read_where_it_runs(
    name: str, gpu: str | None, source: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ckv_export.engine.inspection.present_gpu", lambda: gpu)
    told = engine("kgen", "Reformat")
    found = read(told, name, {"key": "native"}, NATIVE)
    assert (found.source, found.pool_steps) == (source, {"key": "native"})
    assert found.inspector == (told if source == ENGINE else None)
    types = ["kgen", "Reformat"] if source == ENGINE else ["MATRIX_MULTIPLY"]
    assert [layer.type for layer in found.layers] == types


def test_every_plugin_layer_must_be_there():
    assert len(read(engine("PluginV3", "kgen", "PluginV3")).layers) == 3
    with pytest.raises(EngineError, match=r"--plugin embedded .* has 1 plugin layers of 2"):
        read(engine("PluginV3", "kgen"))


def test_an_engine_that_does_not_load():
    with pytest.raises(EngineError, match=r"1\.7 can't load the engine .* gives no reason"):
        read(None)
    with pytest.raises(EngineError, match="just built: out of memory"):
        read(None, "tensorrt", STEPS, EMBEDDED, "out of memory")


@pytest.mark.parametrize("told", ["", "{", "[]"])
def test_an_inspector_without_layers(told: str):
    with pytest.raises(EngineError, match=r"engine inspector of TensorRT 1\.7 gives no layers"):
        read(told)

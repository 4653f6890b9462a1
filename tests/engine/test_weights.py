"""Which weights an engine can exchange, and what else may differ between two files.

The full TensorRT is a stand-in here; what TensorRT for RTX does without a GPU is the real one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from ckv_testing.fake_builder import FakeTensorRt
from ckv_testing.fake_network import names, weights_of
from ckv_testing.refittable import GRAPHS, POOL, REFIT, Files, edited, more_rows, retrained
from onnx import TensorProto, helper, numpy_helper

from ckv_export.engine import Backend, Settings, build_engine
from ckv_export.engine.messages import listen
from ckv_export.engine.network import parse_onnx
from ckv_export.engine.weights import changed_weights, learned_weights, mark_refittable
from ckv_export.errors import EngineError

pytestmark = pytest.mark.usefixtures("one_thread")


# -- which weights


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("kind", ["sim", "hstu"])
def test_all_learned_weights_are_marked_and_no_constant(
    kind: str, graph: str, files: Callable[[str], Files], full: FakeTensorRt, tmp_path: Path
):
    made = files(kind)
    built = build_engine(made.request(graph), full.backend, tmp_path / "e")
    learned = made.learned(graph)
    assert len(learned) > 5
    assert set(full.networks[0].marked) == learned
    assert len(full.networks[0].marked) == len(learned)
    # Nothing that only the exporter knows, and nothing of a shape.
    rest = set(weights_of(made.folder / f"{graph}.onnx")) - learned
    assert rest
    assert not any(name.startswith("model.") for name in rest)
    flags = full.module.BuilderFlag
    assert flags.REFIT_INDIVIDUAL in full.configs[0].flags
    assert flags.REFIT not in full.configs[0].flags
    assert built.settings == {"refit": True}


def test_pools_and_routers_are_learned(files: Callable[[str], Files]):
    names = learned_weights(files("sim").folder / "decode.onnx")
    for side in "kv":
        assert f"model.attention.{side}.pool" in names
        assert f"model.attention.{side}.router.logits.weight" in names


@pytest.mark.parametrize(
    ("kind", "learned"), [("FLOAT", True), ("FLOAT16", True), ("BFLOAT16", True), ("INT64", False)]
)
def test_weights_of_every_float_are_learned(tmp_path: Path, kind: str, learned: bool):
    tensor = helper.make_tensor("model.w", TensorProto.DataType.Value(kind), (1,), [2])
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], [tensor])), tmp_path / "g.onnx")
    assert learned_weights(tmp_path / "g.onnx") == (("model.w",) if learned else ())


def test_nothing_is_marked_unless_asked(
    files: Callable[[str], Files], full: FakeTensorRt, tmp_path: Path
):
    request = dataclasses.replace(files("sim").request("decode"), settings=Settings())
    built = build_engine(request, full.backend, tmp_path / "e")
    assert full.networks[0].marked == []
    assert full.module.BuilderFlag.REFIT_INDIVIDUAL not in full.configs[0].flags
    assert built.settings == {}


def test_a_weight_that_the_network_has_under_no_name(
    files: Callable[[str], Files], full: FakeTensorRt, tmp_path: Path
):
    full.faults.unnamed = POOL
    with pytest.raises(EngineError, match=f"can't make the weight '{POOL}'"):
        build_engine(files("sim").request("decode"), full.backend, tmp_path / "e")
    assert list(tmp_path.iterdir()) == []
    assert full.configs == []


@pytest.mark.tensorrt
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("kind", ["sim", "eta", "sdim", "twin", "hstu"])
def test_rtx_accepts_every_mark(kind: str, graph: str, files: Callable[[str], Files], rtx: Backend):
    """Parsed by the real library, which knows the weights by the names of the file."""
    path = files(kind).folder / f"{graph}.onnx"
    with listen(rtx) as (logger, messages):
        builder = rtx.module.Builder(logger)
        parsed = parse_onnx(path, rtx, builder, logger, messages)
        mark_refittable(parsed.network, path, rtx, messages)
        learned = set(learned_weights(path))
        for name in learned:
            assert parsed.network.are_weights_marked_refittable(name)
        assert not parsed.network.mark_weights_refittable("model.no.such.weight")


@pytest.mark.tensorrt
def test_rtx_without_a_gpu_is_refused_before_it_tries(
    files: Callable[[str], Files], rtx: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ckv_export.engine.targets.present_gpu", lambda: None)
    with pytest.raises(EngineError) as failure:
        build_engine(files("sim").request("decode", "sm86"), rtx, tmp_path / "e")
    sentence = str(failure.value)
    assert "can be refitted only on a machine with a GPU" in sentence
    assert "run ckv-export build on the GPU machine" in sentence
    assert "--pool input" in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.tensorrt
def test_rtx_with_a_gpu_is_allowed(rtx: Backend, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ckv_export.engine.targets.present_gpu", lambda: "sm120")
    REFIT.require_supported(rtx)


def test_what_can_not_be_combined_or_is_too_old(full: FakeTensorRt):
    both = dataclasses.replace(REFIT, version_compatible=True)
    with pytest.raises(EngineError, match="don't go together"):
        both.require_supported(full.backend)
    del full.module.BuilderFlag
    full.module.BuilderFlag = names("BuilderFlag", "TF32 REFIT")  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="can't choose the weights that an engine exchanges"):
        REFIT.require_supported(full.backend)


# -- what may differ


def test_changed_weights_are_told_by_value(
    files: Callable[[str], Files], tmp_path: Path, rng: np.random.Generator
):
    made = files("hstu")
    path = made.folder / "decode.onnx"
    kept = "model.layers.1.attention.v.pool"
    assert changed_weights(path, path) == frozenset()
    new = edited(path, tmp_path / "new.onnx", retrained(rng, keep=kept))
    assert changed_weights(path, new) == made.learned("decode") - {kept}


def test_weights_in_a_file_beside(
    files: Callable[[str], Files], tmp_path: Path, rng: np.random.Generator
):
    """Where they lie is no difference, and their values are read."""
    path = files("sim").folder / "decode.onnx"
    new = tmp_path / "new.onnx"
    onnx.save(
        onnx.load(str(path)), str(new), save_as_external_data=True, location="w", size_threshold=0
    )
    assert changed_weights(path, new) == frozenset()
    data = bytearray((tmp_path / "w").read_bytes())
    model = onnx.load(str(new), load_external_data=False)
    pool = next(t for t in model.graph.initializer if t.name == POOL)
    place = {entry.key: entry.value for entry in pool.external_data}
    data[int(place["offset"])] ^= 1
    (tmp_path / "w").write_bytes(data)
    assert changed_weights(path, new) == changed_weights(new, path) == {POOL}
    (tmp_path / "w").unlink()
    assert learned_weights(path) == learned_weights(new), "names need no values"


def _another_node(model: onnx.ModelProto) -> None:
    model.graph.node[-1].name += "_"


def _another_attribute(model: onnx.ModelProto) -> None:
    model.functions[0].node[0].attribute.append(helper.make_attribute("axis", 7))


def _another_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"


def _another_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"


def _another_operator_set(model: onnx.ModelProto) -> None:
    model.opset_import[0].version += 1


def _half_a_pool(model: onnx.ModelProto) -> None:
    pool = next(t for t in model.graph.initializer if t.name == POOL)
    values = numpy_helper.to_array(pool).astype(np.float16)
    pool.CopyFrom(numpy_helper.from_array(values, POOL))


def _no_pool(model: onnx.ModelProto) -> None:
    pool = next(t for t in model.graph.initializer if t.name == POOL)
    model.graph.initializer.remove(pool)


def _another_constant(model: onnx.ModelProto) -> None:
    scalar = next(t for t in model.graph.initializer if t.name.startswith("val_"))
    array = numpy_helper.to_array(scalar)
    scalar.CopyFrom(numpy_helper.from_array((array + 1).astype(array.dtype), scalar.name))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_another_node, "it differs in its nodes"),
        (_another_attribute, "it differs in its functions"),
        (_another_input, "it differs in its inputs"),
        (_another_output, "it differs in its outputs"),
        (_another_operator_set, "it differs in its operator sets"),
        (_half_a_pool, f"the shape or type of {POOL} differs"),
        (more_rows, f"the shape or type of {POOL} differs"),
        (_no_pool, f"the shape or type of {POOL} differs"),
        (_another_constant, "has other constants"),
    ],
)
def test_another_structure(
    files: Callable[[str], Files], tmp_path: Path, edit: Callable[..., None], says: str
):
    path = files("sim").folder / "decode.onnx"
    new = edited(path, tmp_path / "new.onnx", edit)
    for pair in ((path, new), (new, path)):
        with pytest.raises(EngineError) as failure:
            changed_weights(*pair)
        assert str(failure.value).startswith(f"{pair[1]} ")
        assert says in str(failure.value)
        assert "ckv-export build" in str(failure.value)


def test_what_is_no_onnx(files: Callable[[str], Files], tmp_path: Path):
    (tmp_path / "new.onnx").write_bytes(b"no graph at all " * 9)
    with pytest.raises(EngineError, match="can't be read as ONNX"):
        changed_weights(files("sim").folder / "decode.onnx", tmp_path / "new.onnx")

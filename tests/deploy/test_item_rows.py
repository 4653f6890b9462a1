"""Graphs of HSTU that look the first layer's rows of an item up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from ckv_testing.draw import draw_state, make_spec
from ckv_testing.exports import one_thread
from ckv_testing.forms import TIME
from ckv_testing.hstu import SPEC, hstu_state
from onnx import numpy_helper

from ckv_export.bench.roster import load_weights
from ckv_export.checkpoint.load import Checkpoint, load_checkpoint
from ckv_export.checkpoint.native import save_native
from ckv_export.contract import FeatureSpec, ModelSpec
from ckv_export.deploy.bundle import ExportRequest, export_bundle
from ckv_export.deploy.fidelity import FidelityRequest, check_fidelity
from ckv_export.deploy.prepare import FormRequest, prepare
from ckv_export.errors import SpecError
from ckv_export.manifest import open_bundle, read_manifest
from ckv_export.model.hstu import Hstu
from ckv_export.parity.bundle import recorded_cases
from ckv_export.parity.truth import GraphTruth
from ckv_export.stages import Stages

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS = 40
HSTU = dataclasses.replace(
    SPEC, features=(FeatureSpec("item_id", "item", "categorical", 8, vocab_size=ITEMS), TIME)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("item_rows") / "hstu.pt"
    save_native(path, HSTU, hstu_state(HSTU))
    return path


@pytest.fixture(scope="module")
def bundle(model: Path) -> Path:
    request = ExportRequest(model, model.parent / "out", form=FormRequest(item_rows=True))
    with one_thread():
        return export_bundle(request, Stages(), None).folder  # type: ignore[arg-type]  # no engines


def weights_of(graph: Path) -> dict[str, np.ndarray]:
    found = onnx.load(graph).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in found}


def tables_in(graph: Path) -> list[np.ndarray]:
    return [w for w in weights_of(graph).values() if w.dtype == np.int32 and w.size == ITEMS]


def test_the_graphs_hold_rows_in_place_of_the_first_layers_routers(bundle: Path, model: Path):
    """As loops over items find them; the gate has compared what the graphs compute by them."""
    state = {n: t.double().numpy() for n, t in load_checkpoint(model).state.items()}
    embedding = next(t for n, t in state.items() if t.shape == (ITEMS, 8))
    rows: dict[str, list[int]] = {"k": [], "v": []}
    for item in embedding:
        x = state["input.weight"] @ item
        z = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
        z = z * state["attention.0.norm.weight"] + state["attention.0.norm.bias"]
        for side, found in rows.items():
            found.append(int(np.argmax(state[f"attention.0.{side}.router.weight"] @ z)))
    for graph in ("prefill", "decode"):
        tables = tables_in(bundle / f"{graph}.onnx")
        assert [t.flatten().tolist() for t in tables] == [rows["k"], rows["v"]]
        routers = [name for name in weights_of(bundle / f"{graph}.onnx") if "router" in name]
        assert len(routers) == 2, "those of the second layer"
    assert read_manifest(bundle).parity is not None


def test_it_is_taken_for_what_it_is(bundle: Path, model: Path):
    """Benchmarks give what it is compared with the same rows; PyTorch runs beside it."""
    assert open_bundle(bundle).item_rows
    assert isinstance(rival := load_weights(model, open_bundle(bundle)).model, Hstu)
    assert rival.item_rows is not None
    report = check_fidelity(FidelityRequest(bundle, checkpoint=model), Stages())
    assert report.passed
    assert "pytorch" in {outcome.runtime.runtime for outcome in report.outcomes}


def test_believed_graphs_excuse_flips_where_they_route(bundle: Path):
    cases = [expected.case for expected in recorded_cases(bundle, read_manifest(bundle))]
    (case, *_) = [case for case in cases if case.cached > 3]
    (answer,) = GraphTruth(bundle, read_manifest(bundle)).record([case])
    for side in ("k", "v"):
        margins = answer.margins[f"cache_{side}_index"]
        assert np.isposinf(margins[:, 0]).all()
        assert np.isfinite(margins[:, 1]).any()


def test_a_wrong_row_fails_the_gate(bundle: Path):
    path = bundle / "decode.onnx"
    before = path.read_bytes()
    graph = onnx.load(path)
    table = next(t for t in graph.graph.initializer if list(t.dims) == [ITEMS, 1])
    rows = numpy_helper.to_array(table)
    table.CopyFrom(numpy_helper.from_array((rows + 1) % rows.max(), table.name))
    onnx.save(graph, path)
    manifest = read_manifest(bundle)
    manifest.with_files(bundle).write(bundle)
    try:
        assert not check_fidelity(FidelityRequest(bundle), Stages()).passed
    finally:
        path.write_bytes(before)
        manifest.write(bundle)


# -- refusals


def refused(spec: ModelSpec, says: str, **wishes: object) -> None:
    state = hstu_state(spec) if spec.kind == "hstu" else draw_state(spec, np.random.default_rng())
    checkpoint = Checkpoint(spec, state, "drawn", "native", (), ())
    with pytest.raises(SpecError, match=says):
        prepare(checkpoint, FormRequest(item_rows=True, **wishes))  # type: ignore[arg-type]


def test_a_model_that_caches_by_the_item_alone_is_refused():
    refused(make_spec("twin"), "--item-rows is for hstu: of twin, --item-table has all")


def test_routers_that_are_exchanged_are_refused():
    refused(HSTU, "don't follow a router that is exchanged", pool="refit")


def test_items_without_an_id_are_refused():
    refused(SPEC, "external embeddings and looked-up .* exclude", embeddings="external")
    refused(SPEC, r"more features than 'item_id' \(cate_id, image\): give --item-features")

"""`ckv-export parity`: runtimes, truths, real events, steps, and where a graph goes wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as Xml

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from ckv_export.checkpoint.native import save_native
from ckv_export.contract import EventForm
from ckv_export.errors import MissingDependency
from ckv_export.manifest import read_manifest
from ckv_export.parity.schema import schema
from ckv_export.runtimes import onnxruntime

CASE = "b7_L48"


@pytest.fixture(scope="session")
def events(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded case as a file of requests, with made-up labels."""
    arrays = {}
    with np.load(samples / "sim_micro" / "golden.npz") as file:
        for name in file.files:
            case, _, rest = name.partition("/")
            if case == CASE and rest.startswith("in/item/"):
                feature, array = rest.rsplit("/", 1)[1], file[name]
                arrays[f"event_{feature}"] = array[:, :-1]
                arrays[f"candidate_{feature}"] = array[:, -9:]
            elif name == f"{CASE}/in/mask":
                arrays["event_mask"] = file[name] > 0
    arrays["label"] = np.arange(7 * 9).reshape(7, 9) % 2
    path = tmp_path_factory.mktemp("events") / "requests.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture
def judged(cli, tmp_path: Path) -> Callable[..., dict]:
    """Run `parity`, which must end with that code, and read its report."""

    def run(*words: str | Path, code: int = 0) -> dict:
        result = cli("parity", *words, "--json", tmp_path / "report.json")
        assert result.code == code, result.out + result.err
        data = json.loads((tmp_path / "report.json").read_text())
        jsonschema.validate(data, schema())
        assert data["passed"] is (code == 0)
        return data

    return run


def names(data: dict) -> list[str]:
    return [runtime["name"] for runtime in data["runtimes"]]


def test_all_that_runs_here_and_why_the_rest_does_not(judged, cli, tree, bundle: Path):
    before = tree(bundle)
    data = judged(bundle)
    assert names(data) == ["onnxruntime-cpu"]
    assert set(data["not_run"]) == {
        "pytorch", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt_rtx"
    }  # fmt: skip
    printed = " ".join(cli("parity", bundle).out.split())
    for word in ("Not run", "--checkpoint MODEL", "Routing", "Kendall", "'ckv-export[gpu]'"):
        assert word in printed
    assert tree(bundle) == before


def test_pytorch_runs_where_the_checkpoint_is_given(judged, bundle: Path, run_folder: Path):
    data = judged(bundle, "--checkpoint", run_folder)
    assert names(data) == ["pytorch", "onnxruntime-cpu"]
    assert "pytorch" not in data["not_run"]
    assert f"reference of {run_folder.name}" in data["truth"]
    words = ("--checkpoint", run_folder, "--seed", "9", "--runtime", "pytorch", "--top", "3")
    other = judged(bundle, *words)
    assert names(other) == ["pytorch"]
    assert other["runtimes"][0]["ranking"]["top"] == 3
    assert (other["seed"], other["inputs"]) == (9, "generated")
    worst = [d["runtimes"][0]["tensors"][-1]["statistics"]["mean"] for d in (data, other)]
    assert worst[0] != worst[1], "other cases"


def test_page_and_junit(cli, bundle: Path, tmp_path: Path):
    words = ("--html", tmp_path / "page.html", "--junit", tmp_path / "report.xml")
    assert cli("parity", bundle, *words).code == 0
    assert "<svg" in (tmp_path / "page.html").read_text()
    suites = {s.get("name"): s for s in Xml.parse(tmp_path / "report.xml").getroot()}
    assert suites["onnxruntime-cpu"].get("failures") == "0"
    assert int(suites["onnxruntime-cpu"].get("tests")) > 100
    assert suites["pytorch"].get("skipped") == "1"


def test_real_events_need_someone_to_believe(refused, bundle: Path, events: Path):
    says = ("--checkpoint", "--against")
    refused("parity", bundle, "--events", events, watched=bundle, says=says)


def test_real_events_by_the_checkpoint_and_by_the_twin(
    judged, bundle: Path, halved: Path, run_folder: Path, events: Path
):
    by_reference = judged(halved, "--events", events, "--checkpoint", run_folder)
    by_twin = judged(halved, "--events", events, "--against", bundle)
    assert "PyTorch reference" in by_reference["truth"]
    assert str(bundle) in by_twin["truth"]
    assert names(by_twin) == ["onnxruntime-cpu"]
    for data in (by_reference, by_twin):
        assert data["precision"] == "fp16"
        assert data["inputs"] == f"users of {events.name}"
        ranking = data["runtimes"][-1]["ranking"]
        assert ranking["users"] == 7
        assert ranking["auc"] is not None
        assert abs(ranking["auc_delta"]) < 0.1
        layers = data["runtimes"][-1]["routing"]["layers"]
        assert [layer["flips"] for layer in layers] == [0, 0], "fp16 reaches no router"
        score = data["runtimes"][-1]["tensors"][-1]["statistics"]
        assert 1e-6 < score["max"] < 4e-3, "and shows in the scores"


def test_requests_one_after_another(judged, refused, bundle: Path, halved: Path, run_folder: Path):
    data = judged(halved, "--against", bundle, "--steps", "6")
    steps = data["runtimes"][0]["steps"]
    assert len(steps["steps"]) == 6
    assert all(0 < step["score"]["max"] < 4e-3 for step in steps["steps"])
    alone = judged(bundle, "--steps", "3")["runtimes"][0]["steps"]
    assert str(bundle) in alone["truth"], "its own full recomputation"
    assert max(step["score"]["max"] for step in alone["steps"]) < 2e-6
    assert judged(bundle, "--steps", "2", "--checkpoint", run_folder)["runtimes"][1]["steps"]
    refused(
        "parity", bundle, "--steps", "100000", watched=bundle, says=("--steps must be at most",)
    )


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "tensorrt", "pytorch", "onyx"])
def test_runtime_asked_for_that_can_not_run(name: str, refused, bundle: Path):
    refused("parity", bundle, "--runtime", name, watched=bundle, says=(name,))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--steps", "0"), "--steps"),
        (("--users", "x"), "--users"),
        (("--checkpoint", "nowhere"), "nowhere"),
        (("--against", "nowhere"), "nowhere"),
        (("--against", "{self}", "--events", "nowhere.npz"), "nowhere.npz"),
    ],
)
def test_bad_words_are_refused(words: tuple[str, ...], says: str, refused, bundle: Path):
    given = [word.replace("{self}", str(bundle)) for word in words]
    refused("parity", bundle, *given, watched=bundle, says=(says,))


@pytest.mark.parametrize("option", ["--weights", "--params"])
def test_the_checkpoint_is_the_one_that_is_named(
    refused, bundle: Path, run_folder: Path, option: str
):
    words = ("--checkpoint", run_folder, option, "nobody")
    refused("parity", bundle, *words, watched=bundle, says=("nobody",))


def test_where_nothing_runs_nothing_passes(
    refused, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def missing() -> None:
        raise MissingDependency("onnxruntime", "running ONNX graphs", "cpu")

    monkeypatch.setattr(onnxruntime, "load_module", missing)
    says = ("no runtime can run", "onnxruntime-cpu: ", "ckv-export[cpu]", "pytorch: ")
    words = ("parity", bundle, "--json", tmp_path / "report.json")
    refused(*words, watched=tmp_path, says=says)


def test_checkpoint_of_another_model(refused, bundle: Path, checkpoint, tmp_path: Path):
    state = dict(checkpoint.state)
    state["dnn.0.weight"] = state["dnn.0.weight"] * 1.5
    save_native(tmp_path / "other.pt", checkpoint.spec, state)
    refused(
        "parity", bundle, "--checkpoint", tmp_path / "other.pt", watched=bundle,
        says=("other.pt is not the model", "fingerprint"),
    )  # fmt: skip


def test_twin_that_is_none(refused, bundle: Path, halved: Path, bundle_copy: Path):
    refused("parity", bundle, "--against", halved, watched=bundle, says=("fp32", "fp16"))
    manifest = read_manifest(bundle_copy)
    for changes, says in (
        ({"fingerprint": "0" * 64}, "another model"),
        ({"form": EventForm("external")}, "take other inputs"),
        ({"form": EventForm(item_key="item_id")}, "take other inputs"),
    ):
        dataclasses.replace(manifest, **changes).write(bundle_copy)
        refused("parity", bundle, "--against", bundle_copy, watched=bundle, says=(says,))


# -- faults


def break_graph(bundle: Path, graph: str, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change a graph of a bundle and make its hashes right again."""
    path = bundle / f"{graph}.onnx"
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    read_manifest(bundle).with_files(bundle).write(bundle)


def lower_routers(model: onnx.ModelProto) -> None:
    """Give the routers the weights that bf16 has; casts ONNX Runtime would fold away."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith("router.logits.weight"):
            bits = numpy_helper.to_array(tensor).view(np.uint32) + np.uint32(0x8000)
            array = (bits & np.uint32(0xFFFF0000)).view(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@pytest.mark.parametrize("against", [False, True])
def test_router_in_lower_precision(against: bool, judged, bundle: Path, bundle_copy: Path):
    """Its flips have margins that no fp32 rounding explains, and cost more than they save."""
    for graph in ("prefill", "decode"):
        break_graph(bundle_copy, graph, lower_routers)
    words = ("--localize", "--against", bundle) if against else ()
    data = judged(bundle_copy, *words, code=1)
    (found,) = data["runtimes"]
    failed = {r["tensor"].split("_", 1)[1] for r in found["results"] if not r["passed"]}
    assert failed & {"k_index", "v_index"}
    flips = sum(layer["flips"] for layer in found["routing"]["layers"])
    assert flips > 0
    margins = [layer["flipped"]["quantiles"][-1:] for layer in found["routing"]["layers"]]
    assert max(m[0] for m in margins if m) > 1e-5
    assert found["routing"]["score_error_served"]["max"] > 1e-5
    if against:
        assert "/router/logits/MatMul_0" in found["localized"]["node"]


def nudge(model: onnx.ModelProto) -> None:
    tensor = next(i for i in model.graph.initializer if i.name.endswith("dnn.rest.0.weight"))
    array = numpy_helper.to_array(tensor).copy()
    array[0] += np.asarray(2, array.dtype)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def test_wrong_weight_of_a_half_precision_graph(
    judged, cli, bundle: Path, halved: Path, run_folder: Path, tmp_path: Path
):
    """Found across precisions: by the fp32 twin, and by the checkpoint exported anew."""
    assert judged(halved, "--against", bundle, "--localize")["runtimes"][0]["localized"].startswith(
        "decode: in case"
    )
    wrong = shutil.copytree(halved, tmp_path / "wrong")
    break_graph(wrong, "decode", nudge)
    for words in (("--against", bundle), ("--checkpoint", run_folder)):
        data = judged(wrong, *words, "--localize", code=1)
        (found,) = [r for r in data["runtimes"] if r["name"] == "onnxruntime-cpu"]
        assert found["localized"]["node"] == "MatMul dnn/rest/0/MatMul_0"
    assert not any(r["localized"] for r in data["runtimes"] if r["name"] == "pytorch")
    result = cli("parity", wrong, "--localize")
    assert result.code == 1
    assert "--checkpoint or --against" in " ".join(result.out.split())


def test_graphs_of_another_model(judged, bundle: Path, bundle_copy: Path):
    """Every weight matrix upside down: the same shapes, nothing else."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2:
                array = numpy_helper.to_array(tensor)[::-1].copy()
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    break_graph(bundle_copy, "prefill", change)
    break_graph(bundle_copy, "decode", change)
    data = judged(bundle_copy, "--localize", "--against", bundle, code=1)
    assert data["runtimes"][0]["localized"]["op"] == "Gather", "the first table"

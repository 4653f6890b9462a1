"""A failed parity gate: exit code 1, the tensor, the case and the size of the error; no bundle."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from ckv_export.deploy import bundle as deploy_bundle
from ckv_export.deploy import prepare
from ckv_export.manifest import open_bundle, read_manifest
from ckv_export.parity.tolerances import TOLERANCES

pytestmark = pytest.mark.usefixtures("same_graphs")


@pytest.fixture
def recorded(bundle: Path) -> dict[str, np.ndarray]:
    """What the reference model answers, case by case."""
    with np.load(bundle / "parity_cases.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture
def build_wrongly(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a fault into the split model that is built."""

    def put(change: Callable[[torch.nn.Module], object]) -> None:
        right = prepare.build_model

        def wrong(*args):
            model = right(*args)
            with torch.no_grad():
                change(model)
            return model

        monkeypatch.setattr(prepare, "build_model", wrong)

    return put


@pytest.fixture
def graph_wrongly(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change one initializer of one exported graph."""

    def put(graph_name: str, pick: Callable[[np.ndarray], bool], change) -> None:
        def wrong(graph):
            model = ir.load(bundle / f"{graph.io.name}.onnx")
            if graph.io.name == graph_name:
                values = model.graph.initializers.values()
                (value,) = [v for v in values if pick(v.const_value.numpy())]
                array = change(value.const_value.numpy().copy())
                value.const_value = ir.tensor(array, name=value.name)
            return model

        monkeypatch.setattr(deploy_bundle, "export_graph", wrong)

    return put


@pytest.fixture
def fails(cli, tree, run_folder: Path, bundle_copy: Path, tmp_path: Path) -> Callable[..., str]:
    """Export over an existing bundle, or to a new place: neither may change."""

    def run(*says: str, new: bool = False) -> str:
        before = tree(tmp_path)
        out = tmp_path / "new" / "deep" if new else bundle_copy.parent
        result = cli(run_folder, "--out", out, "--name", bundle_copy.name, "--force")
        sentence = result.sentence(code=1)
        assert tree(tmp_path) == before
        for part in says:
            assert part in sentence
        return sentence

    return run


def errors_of(recorded, tensor: str, answer: Callable[[np.ndarray], np.ndarray]):
    """Name and error of each case if a runtime gave `answer` in place of the reference's."""
    for number, name in enumerate(recorded["names"]):
        right = recorded[f"{number}/out/{tensor}"].astype(np.float64)
        if right.size:
            yield str(name), float(np.abs(answer(right) - right).max())


def test_a_wrong_bias_of_the_score(fails, build_wrongly, recorded):
    """The size of the error follows from the recorded scores: sigmoid(logit + 1/2)."""

    def answer(score: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(np.log(score / (1 - score)) + 0.5)))

    case, error = next(iter(errors_of(recorded, "score", answer)))
    build_wrongly(lambda model: model.dnn.rest[-1].bias.add_(0.5))
    for new in (False, True):
        bound = f"{TOLERANCES['score'].absolute:.3g}"
        sentence = fails("pytorch", "score", repr(case), bound, new=new)
        told = float(re.search(r"off by ([\d.e-]+)", sentence)[1])
        assert told == pytest.approx(error, rel=1e-2)


def test_the_first_tensor_to_diverge_is_named(fails, build_wrongly):
    """A wrong user part spoils what is cached before it spoils any score."""

    def change(model) -> None:
        weight = model.attention.v.user.weight
        weight.data = weight.data * 1.01  # not in place: the reference shares the memory

    build_wrongly(change)
    sentence = fails("pytorch", "_v_user of case")
    assert "score" not in sentence


def test_wrong_row_numbers_are_counted(fails, build_wrongly, recorded):
    """Every row one off: as many differ as there are events in the first case with any."""
    case, tensor, events = next(
        (str(name), tensor, recorded[f"{number}/out/{tensor}"].size)
        for number, name in enumerate(recorded["names"])
        for tensor in ("cache_k_index", "append_k_index")
        if recorded[f"{number}/out/{tensor}"].size
    )

    def change(model) -> None:
        router = model.attention.k.router
        right = router.forward
        router.forward = lambda x: (right(x) + 1) % router.rows

    build_wrongly(change)
    fails("pytorch", tensor, repr(case), f"{events} other row numbers of {events}", "margin")


def test_a_fault_of_the_exported_graph_alone(fails, graph_wrongly, checkpoint):
    """The split model passes; ONNX Runtime doesn't, and is the one that is named."""
    rows, width = checkpoint.state["attention.0.k.pool"].shape
    pool = torch.nn.functional.silu(checkpoint.state["attention.0.k.pool"]).numpy()

    def pick(array: np.ndarray) -> bool:
        return array.shape == (rows, width) and np.allclose(array, pool, atol=1e-6)

    graph_wrongly("decode", pick, lambda array: array[::-1].copy())
    sentence = fails("onnxruntime", "score")
    assert "pytorch" not in sentence


def test_another_graph_is_refused_without_the_gate(
    refused, run_folder: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        deploy_bundle, "export_graph", lambda graph: ir.load(bundle / "decode.onnx")
    )
    words = (run_folder, "--out", tmp_path / "out", "--no-parity")
    refused(*words, watched=tmp_path, says=("inputs of the prefill graph must be",))


def test_without_the_gate_the_fault_is_published(cli, build_wrongly, run_folder, tmp_path: Path):
    """So it was the gate that stopped it."""
    build_wrongly(lambda model: model.dnn.rest[-1].bias.add_(0.5))
    words = (run_folder, "--out", tmp_path / "out", "--name", "wrong", "--no-parity")
    assert cli(*words).code == 0
    assert (tmp_path / "out" / "wrong" / "decode.onnx").is_file()


def test_a_bundle_that_no_longer_computes_the_same(cli, tree, bundle_copy: Path, tmp_path: Path):
    """Its hashes are right, its numbers aren't: `parity` exits 1 and still writes its report."""
    path = bundle_copy / "decode.onnx"
    model = ir.load(path)
    last = f"dnn.rest.{len(open_bundle(bundle_copy).model.dnn.hidden) - 1}.bias"
    (bias,) = [v for n, v in model.graph.initializers.items() if n.endswith(last)]
    bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(0.5), name=bias.name)
    ir.save(model, path)
    read_manifest(bundle_copy).with_files(bundle_copy).write(bundle_copy)
    before = tree(bundle_copy)
    result = cli("parity", bundle_copy, "--json", tmp_path / "report.json")
    sentence = result.sentence(code=1)
    assert "onnxruntime" in sentence
    assert "score" in sentence
    assert "FAILED" in result.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] is False
    failed = {r["tensor"] for o in report["runtimes"] for r in o["results"] if not r["passed"]}
    assert failed == {"score"}
    assert tree(bundle_copy) == before


def test_recorded_cases_that_are_junk(refused, bundle_copy: Path):
    """Hashes right, contents not: refused, not crashed on."""
    shutil.copyfile(bundle_copy / "parity.html", bundle_copy / "parity_cases.npz")
    read_manifest(bundle_copy).with_files(bundle_copy).write(bundle_copy)
    refused("parity", bundle_copy, watched=bundle_copy, says=("parity_cases.npz",))

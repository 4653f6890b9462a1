"""Polygraphy runs a bundle by the scripts that lie in it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from ckv_testing.bundles import write_bundle
from ckv_testing.exports import Export

from ckv_export.parity.interop import FOLDER, SCRIPTS, write_scripts
from ckv_export.parity.page import write_report
from ckv_export.parity.replay import decode_feeds, kept, prefill_feeds
from ckv_export.parity.report import ParityReport
from ckv_export.parity.tolerances import TOLERANCES, tolerance_of

Exported = Callable[[str], Export]


def script(bundle: Path, name: str) -> ModuleType:
    """A script of the bundle, loaded from where it lies, as Polygraphy does."""
    spec = importlib.util.spec_from_file_location(name, bundle / FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bundle(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn SIM as a bundle of its own."""
    made = exported("sim")
    folder = tmp_path_factory.mktemp("polygraphy") / "sim"
    folder.mkdir()
    for graph in ("prefill", "decode"):
        shutil.copyfile(made.folder / f"{graph}.onnx", folder / f"{graph}.onnx")
    copy = Export(made.spec, made.state, folder, made.cases, made.seed)
    manifest = write_bundle(copy)
    write_report(ParityReport.of(manifest, copy.cases, (), {}, seed=0), folder)
    write_scripts(folder)
    return folder


def test_inputs_are_those_of_the_gate(bundle: Path, exported: Exported):
    made, loader = exported("sim"), script(bundle, "data_loader")
    prefill, decode = made.graphs()
    for given, case in zip(loader.load_data(), made.cases, strict=True):
        same(given, prefill_feeds(prefill.io, case, slice(0, case.case.cached)))
    for given, case in zip(loader.load_decode(), made.cases, strict=True):
        cache = {n: a for n, a in case.outputs.items() if n.startswith("cache_")}
        same(given, decode_feeds(decode.io, case, kept(made.spec, cache)))


def same(got: dict, expected: dict) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


def test_scripts_need_only_numpy(bundle: Path):
    """Beside the standard library; Polygraphy's own process may lack this package."""
    for name in SCRIPTS:
        program = (
            "import sys, runpy; sys.modules['ckv_export'] = None; sys.modules['torch'] = None; "
            f"runpy.run_path({str(bundle / FOLDER / name)!r})"
        )
        subprocess.run([sys.executable, "-I", "-c", program], check=True)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_bounds_are_those_of_the_gate(layers: int, precision: str, bundle: Path, tmp_path: Path):
    shutil.copytree(bundle, tmp_path / "b")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["precision"], manifest["model"]["num_layers"] = precision, layers
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    compare = script(tmp_path / "b", "compare")
    for name in ("score", "append_k_user"):
        bound = tolerance_of(name, layers, precision)
        assert compare._bound(name) == pytest.approx((bound.absolute, bound.relative))


def outputs(**changes: np.ndarray) -> dict[str, np.ndarray]:
    right = {
        "score": np.array([[0.5, 0.25]], np.float32),
        "append_k_index": np.array([[[9998]]], np.int32),
    }
    return right | changes


def test_row_next_to_the_right_one_is_wrong(bundle: Path):
    compare = script(bundle, "compare").compare_outputs
    assert all(compare(outputs(), outputs()).values())
    found = compare(outputs(append_k_index=np.array([[[9999]]], np.int32)), outputs())
    assert dict(found) == {"score": True, "append_k_index": False}
    beyond = np.float32(2 * TOLERANCES["score"].absolute)
    for score in (outputs()["score"] + beyond, outputs()["score"] * np.nan, np.zeros((1, 1))):
        assert not compare(outputs(score=score), outputs())["score"]
    lacking = outputs()
    del lacking["score"]
    assert not compare(lacking, outputs())["score"]
    assert not compare(outputs(), lacking)["score"]


# -- for real


def polygraphy(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("polygraphy")
    return subprocess.run(
        [str(program), "run", *words], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def saved(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ONNX Runtime answers, saved by Polygraphy."""
    pytest.importorskip("polygraphy", reason="polygraphy is not installed: ckv-export[dev]")
    out = tmp_path_factory.mktemp("outputs") / "prefill.json"
    loader = ("--data-loader-script", f"{FOLDER}/data_loader.py")
    first = polygraphy(bundle, "prefill.onnx", "--onnxrt", *loader, "--save-outputs", str(out))
    assert first.returncode == 0, first.stdout + first.stderr
    return out


def again(folder: Path, saved: Path) -> subprocess.CompletedProcess[str]:
    return polygraphy(
        folder, "prefill.onnx", "--onnxrt", "--data-loader-script", f"{FOLDER}/data_loader.py",
        "--load-outputs", str(saved), "--compare-func-script", f"{FOLDER}/compare.py",
    )  # fmt: skip


@pytest.mark.slow
def test_polygraphy_runs_prefill_and_passes(bundle: Path, saved: Path, exported: Exported):
    outcome = again(bundle, saved)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    cases = len(exported("sim").cases)
    assert f"Passed: {cases}/{cases} iterations" in outcome.stdout


@pytest.mark.slow
def test_polygraphy_catches_a_swapped_index(bundle: Path, saved: Path, tmp_path: Path):
    wrong = shutil.copytree(bundle, tmp_path / "wrong")
    model = onnx.load(wrong / "prefill.onnx")
    names = {"cache_k_index": "cache_v_index", "cache_v_index": "cache_k_index"}
    for node in model.graph.node:
        for part in (node.input, node.output):
            part[:] = [names.get(n, n) for n in part]
    onnx.save(model, wrong / "prefill.onnx")
    outcome = again(wrong, saved)
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    assert "row numbers differ" in outcome.stdout
    assert "FAILED" in outcome.stdout

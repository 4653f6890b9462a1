"""An engine exchanges all of its learned weights or is left alone.

The full TensorRT is a stand-in here.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ckv_testing import fake_built
from ckv_testing.bundles import manifest_of
from ckv_testing.exports import Export
from ckv_testing.fake_builder import FakeTensorRt
from ckv_testing.fake_built import Runtime
from ckv_testing.fake_engine import Diagnostics, Validity
from ckv_testing.fake_network import names, weights_of
from ckv_testing.refittable import GRAPHS, POOL, Files, edited, more_rows, retrained

from ckv_export.engine import Backend, build_engine
from ckv_export.engine.loading import BundleEngine
from ckv_export.engine.refit import refit_engine
from ckv_export.errors import EngineError
from ckv_export.manifest import EngineEntry, open_bundle

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def built(
    exported: Callable[[str], Export],
    files: Callable[[str], Files],
    full: FakeTensorRt,
    tmp_path: Path,
) -> BundleEngine:
    """A bundle of a SIM with a refittable engine of its decode graph."""
    folder = tmp_path / "old"
    (folder / "engines").mkdir(parents=True)
    for graph in GRAPHS:
        shutil.copyfile(exported("sim").folder / f"{graph}.onnx", folder / f"{graph}.onnx")
    engine = build_engine(files("sim").request("decode"), full.backend, folder / "engines" / "d")
    digest = manifest_of(exported("sim")).with_files(folder).files["decode.onnx"].sha256
    entry = EngineEntry(
        *("decode", "engines/d", "tensorrt", full.backend.version, engine.targets),
        profile=engine.profile,
        layers=engine.layers,
        seconds=engine.seconds,
        settings=engine.settings,
        onnx=digest,
    )
    manifest = dataclasses.replace(manifest_of(exported("sim")), pool="refit", engines=(entry,))
    manifest.with_files(folder).write(folder)
    return BundleEngine(folder, open_bundle(folder), entry)


@pytest.fixture
def new(built: BundleEngine, tmp_path: Path, rng: np.random.Generator) -> Path:
    """The graph of the retrained model."""
    return edited(built.graph_file, tmp_path / "new.onnx", retrained(rng))


def in_plan(plan: Path) -> dict[str, Any]:
    return json.loads(plan.read_bytes())["weights"]


def refuse(built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path) -> str:
    """Refit what must fail, leaving the file that was there; returns the sentence."""
    out = tmp_path / "out" / "e"
    out.parent.mkdir()
    out.write_text("before")
    with pytest.raises(EngineError) as failure:
        refit_engine(built, new, full.backend, out)
    assert {p.name: p.read_text() for p in out.parent.iterdir()} == {"e": "before"}
    return str(failure.value)


def test_an_engine_gets_every_weight(
    built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path
):
    before, out = built.path.read_bytes(), tmp_path / "e"
    assert refit_engine(built, new, full.backend, out)
    assert in_plan(out)["all"] == weights_of(new)
    assert in_plan(out)["all"] != in_plan(built.path)["all"]
    assert in_plan(out)["refittable"] == in_plan(built.path)["refittable"] != []
    assert json.loads(out.read_bytes())["inspector"] == json.loads(before)["inspector"]
    assert built.path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_before_it_could_stay_refittable(
    built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path
):
    """TensorRT before 10.14 writes a refitted engine for good."""
    flags = names("SerializationFlag", "EXCLUDE_WEIGHTS EXCLUDE_LEAN_RUNTIME")
    full.module.SerializationFlag = flags  # type: ignore[attr-defined]
    assert not refit_engine(built, new, full.backend, tmp_path / "e")
    assert in_plan(tmp_path / "e") == {"all": weights_of(new), "refittable": []}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"combined": "fused"}, ("has no values for 'fused'", "which", "needs")),
        ({"refit": True}, ("can't refit the engine",)),
        ({"serialize": True}, ("can't write the refitted engine",)),
        ({"fixed": POOL}, (f"can't exchange the weights {POOL}, which have changed",)),
    ],
)
def test_a_library_that_refuses(
    built: BundleEngine,
    new: Path,
    full: FakeTensorRt,
    tmp_path: Path,
    fault: dict[str, Any],
    says: tuple[str, ...],
):
    full.faults = dataclasses.replace(full.faults, **fault)
    sentence = refuse(built, new, full, tmp_path)
    for part in says:
        assert part in sentence


def test_a_weight_that_the_engine_keeps_and_training_did_not_change(
    built: BundleEngine, full: FakeTensorRt, tmp_path: Path, rng: np.random.Generator
):
    full.faults.fixed = POOL
    new = edited(built.graph_file, tmp_path / "new.onnx", retrained(rng, keep=POOL))
    assert refit_engine(built, new, full.backend, tmp_path / "e")
    assert in_plan(tmp_path / "e")["all"] == weights_of(new)


def test_a_weight_that_the_file_lacks(
    built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path
):
    """Told in the parser's own words."""
    plan = json.loads(built.path.read_bytes())
    plan["weights"]["refittable"].append("model.of.an.earlier.version")
    sentence = refuse(replaced(built, json.dumps(plan)), new, full, tmp_path)
    assert "can't put the weights of" in sentence
    assert "Only successfully refitted" in sentence


def replaced(built: BundleEngine, text: str) -> BundleEngine:
    """The bundle with another engine file, listed as it is."""
    built.path.write_text(text)
    manifest = built.manifest.with_files(built.folder)
    return dataclasses.replace(built, manifest=manifest)


def test_an_engine_that_was_not_built_for_it(
    built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path
):
    plan = json.loads(built.path.read_bytes())
    plan["weights"]["refittable"] = []
    sentence = refuse(replaced(built, json.dumps(plan)), new, full, tmp_path)
    assert "was not built to be refitted: export with --pool refit" in sentence


def test_what_is_no_engine(built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path):
    sentence = refuse(replaced(built, "{"), new, full, tmp_path)
    assert re.search(r"can't load the engine .*: no engine$", sentence)


def test_what_tensorrt_for_rtx_finds_invalid(
    built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path
):
    """It is asked before it loads an engine, and says why."""

    class RtxRuntime(Runtime):
        def get_engine_validity(self, plan: bytes) -> tuple[Validity, int]:
            return Validity.INVALID, Diagnostics.UNSUPPORTED_CC

    found = {"EngineValidity": Validity, "EngineInvalidityDiagnostics": Diagnostics}
    vars(full.module).update(found, Runtime=RtxRuntime)
    full.backend = dataclasses.replace(full.backend, name="tensorrt_rtx")
    entry = dataclasses.replace(built.entry, backend="tensorrt_rtx")
    built = dataclasses.replace(built, entry=entry)
    assert "it was not built for this GPU" in refuse(built, new, full, tmp_path)


def test_another_graph(built: BundleEngine, full: FakeTensorRt, tmp_path: Path):
    new = edited(built.graph_file, tmp_path / "new.onnx", more_rows)
    assert "is another graph" in refuse(built, new, full, tmp_path)


def test_the_engine_is_checked_before_it_is_loaded(
    built: BundleEngine, new: Path, full: FakeTensorRt, tmp_path: Path
):
    built.path.write_bytes(built.path.read_bytes() + b" ")
    assert "its hash differs" in refuse(built, new, full, tmp_path)


def test_without_a_gpu(
    built: BundleEngine,
    new: Path,
    full: FakeTensorRt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("ckv_export.engine.loading.present_gpu", lambda: None)
    assert "there is no GPU here" in refuse(built, new, full, tmp_path)


def test_the_command_that_builds_it_anew_needs_no_flag(built: BundleEngine, full: FakeTensorRt):
    """The bundle says that its engines are refittable; `build` has no such option."""
    assert built.entry.settings == {"refit": True}
    assert "refit" not in built.build_command(full.backend).replace(str(built.folder), "")


@pytest.mark.tensorrt
def test_the_stand_in_has_no_call_that_the_library_lacks(rtx: Backend):
    pairs = {
        "Refitter": fake_built.Refitter,
        "OnnxParserRefitter": fake_built.OnnxParserRefitter,
        "ISerializationConfig": fake_built.SerializationConfig,
        "ICudaEngine": fake_built.Engine,
    }
    for name, stand_in in pairs.items():
        calls = {n for n, part in vars(stand_in).items() if n[0] != "_" and callable(part)}
        calls -= {"get_engine_information"}  # of the inspector, which the stand-in is too
        assert calls
        assert calls <= set(dir(getattr(rtx.module, name)))
    for name in ("EXCLUDE_WEIGHTS", "INCLUDE_REFIT"):
        assert hasattr(rtx.module.SerializationFlag, name)
    assert hasattr(rtx.module.BuilderFlag, "REFIT_INDIVIDUAL")
    assert hasattr(rtx.module.ICudaEngine, "refittable")

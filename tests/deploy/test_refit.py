"""A retrained model's export gets the engines of the one before: all of them, or nothing changes.

The full TensorRT is a stand-in here; the exports are real.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ckv_testing import fake_builder
from ckv_testing.draw import draw_state
from ckv_testing.exports import VARIANTS
from ckv_testing.fake_builder import FakeTensorRt, write_library
from ckv_testing.fake_built import OnnxParserRefitter
from ckv_testing.fake_network import names, weights_of

from ckv_export.checkpoint.native import save_native
from ckv_export.cli.main import main
from ckv_export.contract import EventForm
from ckv_export.deploy.bundle import ExportRequest, export_bundle
from ckv_export.deploy.engines import EngineOptions, build_engines
from ckv_export.deploy.prepare import FormRequest
from ckv_export.deploy.publish import amended
from ckv_export.deploy.refit import refit_bundle
from ckv_export.engine import PluginChoice, Settings
from ckv_export.errors import BundleError, CkvError, EngineError
from ckv_export.manifest import ITEM_TABLE_FILE, ItemTable, Manifest, open_bundle
from ckv_export.model.fingerprint import Fingerprints
from ckv_export.stages import Stages

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = VARIANTS["twin"]


def no_display() -> None:
    raise AssertionError("no engine is built")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports of a model, of another one, and of that one's entries with the first one's rest."""
    folder = tmp_path_factory.mktemp("exports")
    states = {name: draw_state(SPEC, np.random.default_rng(i)) for i, name in enumerate("ab")}
    # What is cached of an event is as before: only what reads it was trained.
    states["c"] = {n: states["b" if n.startswith("dnn.") else "a"][n] for n in states["a"]}
    first, third = (Fingerprints.of(SPEC, states[name]).entries for name in "ac")
    assert first == third
    made = {}
    for name, state in states.items():
        save_native(folder / f"{name}.pt", SPEC, state)
        form = FormRequest(pool="refit")
        request = ExportRequest(folder / f"{name}.pt", folder, parity=False, form=form)
        made[name] = export_bundle(request, Stages(), no_display).folder
    return made


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """TensorRT 11.4 on an H100."""
    fake = fake_builder.install(monkeypatch)
    monkeypatch.setattr("ckv_export.engine.loading.present_gpu", lambda: fake_builder.GPU)
    monkeypatch.setattr("ckv_export.deploy.refit.load", lambda name: fake.backend)
    return fake


def build(bundle: Path, full: FakeTensorRt, settings: Settings | None = None) -> Manifest:
    options = EngineOptions(full.backend, settings=settings or Settings())
    with amended(bundle) as folder:
        built = build_engines(
            folder, open_bundle(bundle), options, Stages(), contextlib.nullcontext
        ).with_files(folder)
        built.write(folder)
    return open_bundle(bundle)


@pytest.fixture
def pair(exports: dict[str, Path], full: FakeTensorRt, tmp_path: Path) -> tuple[Path, Path]:
    """The retrained model's export, and the old bundle with engines."""
    old = shutil.copytree(exports["a"], tmp_path / "old")
    build(old, full)
    return shutil.copytree(exports["b"], tmp_path / "new"), old


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refuse(pair: tuple[Path, Path], kind: type[CkvError], tmp_path: Path) -> str:
    """Refit what must fail, with everything as it was; returns the sentence."""
    before = contents(tmp_path)
    with pytest.raises(kind) as failure:
        refit_bundle(*pair, Stages())
    assert contents(tmp_path) == before
    return str(failure.value)


def test_every_engine_with_the_new_weights(pair: tuple[Path, Path], full: FakeTensorRt):
    new, old = pair
    source, plain = open_bundle(old), open_bundle(new)
    assert plain.form.pools is None, "they stay constants of the graphs"
    before = contents(old)
    stages = Stages()
    refitted = refit_bundle(new, old, stages)
    assert not refitted.caches_valid
    assert contents(old) == before
    manifest = open_bundle(new)
    assert manifest == refitted.manifest
    assert [e.file for e in manifest.engines] == [e.file for e in source.engines]
    for entry, was in zip(manifest.engines, source.engines, strict=True):
        onnx = manifest.files[f"{entry.graph}.onnx"].sha256
        assert entry.onnx == onnx != was.onnx
        assert manifest.files[entry.file] != source.files[entry.file]
        assert manifest.files[entry.report] == source.files[entry.report]
        same = dataclasses.replace(entry, onnx=was.onnx, seconds=was.seconds)
        assert same == was
        weights = json.loads((new / entry.file).read_bytes())["weights"]
        assert weights["all"] == weights_of(new / f"{entry.graph}.onnx")
    left = dataclasses.replace(manifest, engines=(), files=plain.files)
    assert left == plain
    assert {n: manifest.files[n] for n in plain.files} == plain.files
    assert [s.title for s in stages.finished][1:] == [f"refit {e.file}" for e in source.engines]


def test_refitted_engines_are_refitted_again(
    pair: tuple[Path, Path], exports: dict[str, Path], tmp_path: Path
):
    new, old = pair
    refit_bundle(new, old, Stages())
    third = shutil.copytree(exports["c"], tmp_path / "third")
    # Of the retrained model, and of the one that caches the same: valid goes by entries.
    assert not refit_bundle(third, new, Stages()).caches_valid
    fourth = shutil.copytree(exports["c"], tmp_path / "fourth")
    assert refit_bundle(fourth, old, Stages()).caches_valid
    engines = [(bundle / e.file).read_bytes() for bundle in (third, fourth)
               for e in open_bundle(bundle).engines]  # fmt: skip
    assert engines[:2] == engines[2:]


def test_an_engine_that_is_final_says_so(
    pair: tuple[Path, Path], exports: dict[str, Path], full: FakeTensorRt, tmp_path: Path
):
    """TensorRT before 10.14 writes a refitted engine for good."""
    new, old = pair
    flags = names("SerializationFlag", "EXCLUDE_WEIGHTS EXCLUDE_LEAN_RUNTIME")
    full.module.SerializationFlag = flags  # type: ignore[attr-defined]
    refit_bundle(new, old, Stages())
    third = shutil.copytree(exports["c"], tmp_path / "third")
    assert "can't be refitted: it was built without" in refuse((third, new), BundleError, tmp_path)
    # The engines that were built are not final.
    refit_bundle(third, old, Stages())


def test_the_plugin_library_comes_with_them(
    exports: dict[str, Path], full: FakeTensorRt, tmp_path: Path
):
    library = write_library(tmp_path / "lib", ["PoolGatherConcat", "PooledAttention"])
    old = shutil.copytree(exports["a"], tmp_path / "old")
    source = build(old, full, Settings(PluginChoice("library", library)))
    new = shutil.copytree(exports["b"], tmp_path / "new")
    refit_bundle(new, old, Stages())
    (file,) = {str(e.plugin["file"]) for e in source.engines if e.plugin}
    assert (new / file).read_bytes() == library.read_bytes()
    assert open_bundle(new).files[file] == source.files[file]


# -- what is refused


def change(bundle: Path, **changes: Any) -> None:
    manifest = dataclasses.replace(open_bundle(bundle), **changes)
    if manifest.item_table:
        for name in ("decode_items.onnx", ITEM_TABLE_FILE):
            (bundle / name).touch()
    manifest.with_files(bundle).write(bundle)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"precision": "fp16"}, "differs from {old} in its precision"),
        ({"form": EventForm("external")}, "in its form of events"),
        ({"item_table": ItemTable(30, 4, "float32")}, "in its item table"),
        ({"operators": {"ckv": 2, "opset": 20}}, "in its operators"),
        ({"model": dataclasses.replace(SPEC, max_len=SPEC.max_len + 1)}, "in its model (max_len)"),
        ({"pool": "constant"}, "{new} was exported with --pool constant"),
    ],
)
def test_bundles_that_differ(
    pair: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], says: str
):
    new, old = pair
    change(new, **changes)
    sentence = refuse(pair, BundleError, tmp_path)
    assert says.format(new=new, old=old) in sentence


def test_an_old_bundle_that_holds_constants(pair: tuple[Path, Path], tmp_path: Path):
    change(pair[1], pool="constant")
    sentence = refuse(pair, BundleError, tmp_path)
    assert f"{pair[1]} was exported with --pool constant" in sentence


def test_bundles_with_and_without_engines(
    pair: tuple[Path, Path], exports: dict[str, Path], full: FakeTensorRt, tmp_path: Path
):
    new, old = pair
    assert "has engines already" in refuse((old, old), BundleError, tmp_path)
    assert "has no engines to refit" in refuse((new, exports["a"]), BundleError, tmp_path)


def test_engines_built_before_they_could_be(pair: tuple[Path, Path], tmp_path: Path):
    old = open_bundle(pair[1])
    engines = tuple(dataclasses.replace(e, settings={}) for e in old.engines)
    change(pair[1], engines=engines)
    assert f"{engines[0].file} can't be refitted" in refuse(pair, BundleError, tmp_path)


def test_without_a_gpu(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ckv_export.engine.targets.present_gpu", lambda: None)
    sentence = refuse(pair, EngineError, tmp_path)
    assert f"refitting the engines of {pair[1]} needs a GPU" in sentence


def test_an_engine_that_fails_leaves_none_of_those_before_it(
    pair: tuple[Path, Path], full: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = OnnxParserRefitter.refit_from_file
    done: list[str] = []

    def refit(self: Any, model: str) -> bool:
        done.append(model)
        return len(done) == 1 and real(self, model)

    monkeypatch.setattr(OnnxParserRefitter, "refit_from_file", refit)
    sentence = refuse(pair, EngineError, tmp_path)
    assert "can't put the weights of" in sentence
    assert [Path(model).name for model in done] == ["prefill.onnx", "decode.onnx"]


@pytest.mark.parametrize("damaged", ["new", "old"])
def test_damage_is_found_first(pair: tuple[Path, Path], tmp_path: Path, damaged: str):
    new, old = pair
    file = new / "decode.onnx" if damaged == "new" else old / open_bundle(old).engines[1].file
    file.write_bytes(b"{}")
    assert "its hash differs" in refuse(pair, BundleError, tmp_path)


# -- the command


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str | Path) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        # Where lines break depends on how long the temporary folder's name is.
        return code, " ".join(captured.out.split()), captured.err

    return run


def test_the_command_says_what_is_valid_and_what_proves_it(
    pair: tuple[Path, Path], exports: dict[str, Path], command: Any, tmp_path: Path
):
    new, old = pair
    code, out, err = command("refit", new, "--engines-of", old)
    assert (code, err) == (0, "")
    assert f"Caches made with {old} are not valid with them" in out
    assert "Prefill again." in out
    manifest = open_bundle(new)
    for e in manifest.engines:
        assert f"refit {e.file} done" in out
        size = f"{manifest.files[e.file].bytes / 1e6:.2f} MB"
        assert " \u2502 ".join((e.file, size, e.backend_version, str(e.seconds))) in out
    assert re.search(rf"ckv-export parity {re.escape(str(new))}$", out)
    third = shutil.copytree(exports["c"], tmp_path / "third")
    code, out, _ = command("refit", third, "--engines-of", old)
    assert code == 0
    assert f"Caches made with {old} are valid with them" in out


def test_the_command_when_interrupted_at_last(
    pair: tuple[Path, Path], command: Any, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ckv_export.cli.refit._print_summary", interrupt)
    code, _, err = command("refit", pair[0], "--engines-of", pair[1])
    assert (code, open_bundle(pair[0]).engines != ()) == (2, True)
    assert f"interrupted, but the engines of {pair[0]} are refitted" in err


@pytest.mark.parametrize("why", ["gpu", "pool", "library"])
def test_the_command_refuses_in_one_sentence(
    pair: tuple[Path, Path],
    command: Any,
    full: FakeTensorRt,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
):
    new, old = pair
    if why == "gpu":
        monkeypatch.setattr("ckv_export.engine.targets.present_gpu", lambda: None)
    elif why == "pool":
        change(new, pool="input")
    else:
        full.faults.refit = True
    before = contents(new)
    code, _, err = command("refit", new, "--engines-of", old)
    assert code == 2
    assert err.startswith("ckv-export: error: ")
    assert len(err.splitlines()) == 1
    assert contents(new) == before


def test_an_export_is_not_begun_where_its_engines_can_not_be_built(
    exports: dict[str, Path], full: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    backend = dataclasses.replace(full.backend, name="tensorrt_rtx")
    monkeypatch.setattr("ckv_export.engine.targets.present_gpu", lambda: None)
    request = ExportRequest(
        exports["a"].parent / "a.pt",
        tmp_path / "out",
        form=FormRequest(pool="refit"),
        engines=EngineOptions(backend),
    )
    stages = Stages()
    with pytest.raises(EngineError, match="only on a machine with a GPU"):
        export_bundle(request, stages, no_display)
    assert stages.finished == []
    assert not (tmp_path / "out").exists()

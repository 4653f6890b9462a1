"""Repositories as files: which models, where they may be written, what they ask of a bundle."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from ckv_testing.serving import Shop

from ckv_export.cli.main import main
from ckv_export.deploy import triton
from ckv_export.errors import BundleError, InputError
from ckv_export.manifest import EngineEntry, Manifest, open_bundle
from ckv_export.triton.config import FILE_NAME, parse_config
from ckv_export.triton.repository import RepositoryOptions, capability, write_repository
from ckv_export.triton.settings import Settings

pytest.importorskip("tritonclient.grpc", reason="the package tritonclient is not installed")

STORE = "redis://127.0.0.1:1/0"


def with_engines(shop: Shop, folder: Path, *targets: str) -> Manifest:
    """The bundle copied to `folder`, with files in the place of engines for TensorRT."""
    shutil.copytree(shop.folder, folder)
    (folder / "engines").mkdir()
    (folder / "engines" / "rtx").touch()
    entries = []
    for graph in ("prefill", "decode"):
        for target in targets:
            file = f"engines/{graph}.tensorrt.{target.replace(' ', '_')}.engine"
            (folder / file).write_text(f"{graph} {target}")
            sms = tuple(target.split())
            entries.append(EngineEntry(graph, file, "tensorrt", "10.9", sms, {}, 1, 1.0))
        entries.append(
            EngineEntry(graph, "engines/rtx", "tensorrt_rtx", "1.7", ("sm89",), {}, 1, 1.0)
        )
    manifest = dataclasses.replace(open_bundle(folder), engines=tuple(entries))
    manifest = manifest.with_files(folder)
    manifest.write(folder)
    return manifest


def test_onnx_models_of_a_bundle(
    shops: Callable[[str], Shop], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shop = shops("sim")
    out = tmp_path / "repo"
    assert main(["triton", str(shop.folder), f"--out={out}", f"--store={STORE}"]) == 0
    name = shop.manifest.name
    assert f"{name}, {name}_prefill, {name}_decode" in " ".join(capsys.readouterr().out.split())
    assert {p.name for p in out.iterdir()} == {
        name,
        f"{name}_prefill",
        f"{name}_decode",
        "launch.sh",
    }
    for model in (p for p in out.iterdir() if p.is_dir()):
        config = parse_config((model / FILE_NAME).read_text())
        assert config.name == model.name
        assert (model / "1" / config.default_model_filename).is_file() or config.backend == "python"
    decode = out / f"{name}_decode" / "1" / "model.onnx"
    assert decode.read_bytes() == (shop.folder / "decode.onnx").read_bytes()
    assert os.access(out / "launch.sh", os.X_OK)


@pytest.mark.parametrize("form", ["sim", "items"])
@pytest.mark.parametrize("platform", ["onnx", "in-process"])
def test_the_orchestrating_model_is_told_what_was_chosen(
    shops: Callable[[str], Shop], tmp_path: Path, form: str, platform: str
):
    shop, out = shops(form), tmp_path / "repo"
    chosen = ["--user-dtype=fp32", "--max-events=5", "--instances=2", "--queue-delay=7"]
    command = ["triton", str(shop.folder), f"--out={out}", f"--store={STORE}", *chosen]
    own = platform == "in-process"
    assert main([*command, f"--platform={platform}", *(["--threads=3"] if own else [])]) == 0
    name, graph = shop.manifest.name, shop.manifest.graph_names[-1]
    config = parse_config((out / name / FILE_NAME).read_text())
    told = Settings.of({n: p.string_value for n, p in config.parameters.items()})
    decode_model, threads = (None, 3) if own else (f"{name}_decode", 1)
    assert told == Settings(STORE, graph, decode_model, "fp32", 5, threads)
    assert config.instance_group[0].count == 2
    assert config.dynamic_batching.max_queue_delay_microseconds == 7
    models = {p.parent.name for p in out.glob(f"*/{FILE_NAME}")}
    assert models == ({name} if own else {name, f"{name}_prefill", f"{name}_decode"})
    most = shop.manifest.profile.axes["B"].max
    for model in models:
        assert parse_config((out / model / FILE_NAME).read_text()).max_batch_size == most
    assert (out / name / "1" / "bundle" / f"{graph}.onnx").is_file() == own
    if not own:
        decode = parse_config((out / f"{name}_decode" / FILE_NAME).read_text())
        taken = {i.name for i in decode.input}
        assert taken == {t.name for t in shop.manifest.graph(graph).inputs if t.axes[0] == "B"}
        model = onnx.load(out / f"{name}_decode" / "1" / "model.onnx", load_external_data=False)
        assert {i.name for i in model.graph.input} == taken
        candidates = decode.model_warmup[0].inputs["candidate_item_id"]
        assert list(candidates.dims) == [shop.manifest.profile.axes["C"].opt]


def test_weights_beside_a_graph_go_with_it(shops: Callable[[str], Shop], tmp_path: Path):
    folder = tmp_path / "bundle"
    shutil.copytree(shops("sim").folder, folder)
    (folder / "weights.bin").write_bytes(b"large")
    manifest = open_bundle(folder).with_files(folder)
    (tmp_path / "repo").mkdir()
    names = write_repository(folder, manifest, RepositoryOptions(STORE), tmp_path / "repo")
    for name in names[1:]:
        assert (tmp_path / "repo" / name / "1" / "weights.bin").read_bytes() == b"large"


def test_plans_and_plugin(shops: Callable[[str], Shop], tmp_path: Path):
    manifest = with_engines(shops("sim"), tmp_path / "bundle", "sm86", "sm120 sm121")
    plugin = tmp_path / "libckv_static.so"
    plugin.write_bytes(b"plugin")
    out = tmp_path / "repo"
    options = ["--platform=tensorrt", f"--plugin={plugin}", f"--store={STORE}"]
    assert main(["triton", str(tmp_path / "bundle"), f"--out={out}", *options]) == 0
    for graph in ("prefill", "decode"):
        model = out / f"{manifest.name}_{graph}"
        config = parse_config((model / FILE_NAME).read_text())
        plans = {cc: (model / "1" / f).read_text() for cc, f in config.cc_model_filenames.items()}
        both = f"{graph} sm120 sm121"
        assert plans == {"8.6": f"{graph} sm86", "12.0": both, "12.1": both}
        assert (model / "1" / config.default_model_filename).is_file()
    launcher = (out / "launch.sh").read_text()
    folder = f"{manifest.name}_decode"
    assert f'--backend-config=tensorrt,plugins="$repository/{folder}/{plugin.name}"' in launcher
    assert (out / folder / plugin.name).read_bytes() == b"plugin"


def test_what_a_bundle_can_not_give_is_refused(shops: Callable[[str], Shop], tmp_path: Path):
    sim, items = shops("sim"), shops("items")
    plans = RepositoryOptions(STORE, platform="tensorrt")
    with pytest.raises(BundleError, match=r"no engine of prefill .* --backend tensorrt"):
        write_repository(sim.folder, sim.manifest, plans, tmp_path / "a")
    manifest = with_engines(items, tmp_path / "bundle", "sm86")
    with pytest.raises(BundleError, match="--platform onnx"):
        write_repository(tmp_path / "bundle", manifest, plans, tmp_path / "b")
    options = RepositoryOptions(STORE, plugin=tmp_path / "p.so")
    with pytest.raises(InputError, match="--platform tensorrt only"):
        write_repository(sim.folder, sim.manifest, options, tmp_path / "c")
    half = dataclasses.replace(sim.manifest, precision="bf16")
    with pytest.raises(InputError, match=r"no products of bf16 .*--platform onnx or tensorrt"):
        write_repository(sim.folder, half, RepositoryOptions(STORE, "in-process"), tmp_path / "f")
    with pytest.raises(InputError, match="must be one of onnx, tensorrt, in-process, got 'cpu'"):
        write_repository(sim.folder, sim.manifest, RepositoryOptions(STORE, "cpu"), tmp_path / "d")
    named = dataclasses.replace(sim.manifest, name="my sim")
    with pytest.raises(BundleError, match=r"is 'my sim'.* another --name"):
        write_repository(sim.folder, named, RepositoryOptions(STORE), tmp_path / "h")
    with pytest.raises(InputError, match=r"got 'users\.db'"):
        write_repository(sim.folder, sim.manifest, RepositoryOptions("users.db"), tmp_path / "e")
    for store, says in (("sqlite:///\udcff.db", "surrogates"), ("redis:///0", "--max-events")):
        wrong = RepositoryOptions(store, max_events=10)
        with pytest.raises(InputError, match=says):
            write_repository(sim.folder, sim.manifest, wrong, tmp_path / "g")
    for target in ("sm8", "86", "sm8x"):
        with pytest.raises(BundleError, match=f"'{target}' names no compute capability"):
            capability(target)


def test_nothing_else_is_ever_replaced_and_nothing_half_written(
    shops: Callable[[str], Shop],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    shop, out = shops("items"), tmp_path / "repo"
    command = ["triton", str(shop.folder), f"--out={out}", f"--store={STORE}"]
    out.write_text("a file")
    assert main(command) == 2
    assert f"the output folder {out} is a file" in " ".join(capsys.readouterr().err.split())
    out.unlink()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert main(command) == 2
    assert main([*command, "--force"]) == 2
    assert capsys.readouterr().err.count("is no repository that ckv-export wrote") == 2
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    assert main([*command, "--platform=tensorrt"]) == 2
    assert list(out.iterdir()) == []
    assert main(command) == 0
    first = sorted(p.name for p in out.iterdir())
    capsys.readouterr()
    assert main(command) == 2
    assert "give --force to replace it" in capsys.readouterr().err
    assert main([*command, "--force", f"--store=sqlite:///{out}/users.db"]) == 2
    assert f"{out}/users.db lies in {out}, which is replaced" in capsys.readouterr().err
    monkeypatch.chdir(out)
    assert main([*command, "--out=.", "--force", "--platform=in-process"]) == 0
    assert "\n  ./launch.sh\n" in capsys.readouterr().out
    assert (
        sorted(p.name for p in out.iterdir()) == sorted(["launch.sh", shop.manifest.name]) != first
    )
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_what_comes_there_meanwhile_is_not_replaced(
    shops: Callable[[str], Shop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "repo"

    def write(*given: object) -> list[str]:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        return []

    monkeypatch.setattr(triton, "write_repository", write)
    shop = shops("sim")
    with pytest.raises(BundleError, match="no repository that ckv-export wrote"):
        triton.publish_repository(shop.folder, shop.manifest, RepositoryOptions(STORE), out, True)
    assert [p.name for p in tmp_path.iterdir()] == ["repo"]
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


def test_a_repository_is_not_put_into_its_bundle(shops: Callable[[str], Shop]):
    shop = shops("sim")
    out = shop.folder / "repo"
    with pytest.raises(BundleError, match="which is replaced with everything in it"):
        triton.publish_repository(shop.folder, shop.manifest, RepositoryOptions(STORE), out, True)
    assert not out.exists()


def test_a_damaged_bundle_is_refused(shops: Callable[[str], Shop], tmp_path: Path):
    folder = tmp_path / "bundle"
    shutil.copytree(shops("sim").folder, folder)
    data = bytearray((folder / "decode.onnx").read_bytes())
    data[int(np.random.default_rng().integers(len(data)))] ^= 1
    (folder / "decode.onnx").write_bytes(data)
    assert main(["triton", str(folder), f"--out={tmp_path / 'r'}", f"--store={STORE}"]) == 2
    assert not (tmp_path / "r").exists()

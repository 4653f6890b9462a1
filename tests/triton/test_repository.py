"""Repositories as files: which models, where they may be written, what they ask of a bundle."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.serving import Shop

from ckv_export.cli.main import main
from ckv_export.errors import BundleError, InputError
from ckv_export.manifest import EngineEntry, Manifest, open_bundle
from ckv_export.triton.config import FILE_NAME, parse_config
from ckv_export.triton.repository import RepositoryOptions, capability, write_repository

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
            file = f"engines/{graph}.tensorrt.{target}.engine"
            (folder / file).write_text(f"{graph} {target}")
            entries.append(EngineEntry(graph, file, "tensorrt", "10.9", (target,), {}, 1, 1.0))
        entries.append(
            EngineEntry(graph, "engines/rtx", "tensorrt_rtx", "1.7", ("sm89",), {}, 1, 1.0)
        )
    manifest = dataclasses.replace(open_bundle(folder), engines=tuple(entries))
    manifest = manifest.with_files(folder)
    manifest.write(folder)
    return manifest


def test_onnx_models_of_a_bundle(shops: Callable[[str], Shop], tmp_path: Path):
    shop = shops("sim")
    out = tmp_path / "repo"
    assert main(["triton", str(shop.folder), f"--out={out}", f"--store={STORE}"]) == 0
    name = shop.manifest.name
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
    manifest = with_engines(shops("sim"), tmp_path / "bundle", "sm86", "sm120")
    plugin = tmp_path / "libckv_static.so"
    plugin.write_bytes(b"plugin")
    out = tmp_path / "repo"
    options = ["--platform=tensorrt", f"--plugin={plugin}", f"--store={STORE}"]
    assert main(["triton", str(tmp_path / "bundle"), f"--out={out}", *options]) == 0
    for graph in ("prefill", "decode"):
        model = out / f"{manifest.name}_{graph}"
        config = parse_config((model / FILE_NAME).read_text())
        plans = {cc: (model / "1" / f).read_text() for cc, f in config.cc_model_filenames.items()}
        assert plans == {"8.6": f"{graph} sm86", "12.0": f"{graph} sm120"}
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
    with pytest.raises(InputError, match=r"got 'users\.db'"):
        write_repository(sim.folder, sim.manifest, RepositoryOptions("users.db"), tmp_path / "e")
    for store, says in (("sqlite:///\udcff.db", "surrogates"), ("redis:///0", "--max-events")):
        wrong = RepositoryOptions(store, max_events=10)
        with pytest.raises(InputError, match=says):
            write_repository(sim.folder, sim.manifest, wrong, tmp_path / "g")
    with pytest.raises(BundleError, match="'sm8'"):
        capability("sm8")


def test_nothing_else_is_ever_replaced_and_nothing_half_written(
    shops: Callable[[str], Shop], tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    assert main([*command, "--force", "--platform=in-process"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["launch.sh", shop.manifest.name] != first
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_damaged_bundle_is_refused(shops: Callable[[str], Shop], tmp_path: Path):
    folder = tmp_path / "bundle"
    shutil.copytree(shops("sim").folder, folder)
    data = bytearray((folder / "decode.onnx").read_bytes())
    data[int(np.random.default_rng().integers(len(data)))] ^= 1
    (folder / "decode.onnx").write_bytes(data)
    assert main(["triton", str(folder), f"--out={tmp_path / 'r'}", f"--store={STORE}"]) == 2
    assert not (tmp_path / "r").exists()

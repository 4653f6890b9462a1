"""A model that can't be exported: one sentence, exit code 2, nothing written, nothing executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ckv_export.checkpoint.native import save_native

Refuse = Callable[..., str]


class Runs:
    """An object whose unpickling makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def spoil_features(folder: Path, change: Callable[[list], None]) -> None:
    """Change the list of features of a run folder."""
    path = folder / "feature_map.json"
    data = json.loads(path.read_text())
    change(data["features"])
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.pt", b""),
        ("prose.pt", b"these are not weights\n"),
        ("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(64)),
        ("cut.pt", b"PK\x03\x04" + bytes(100)),
        ("noise.pt", bytes(range(256)) * 8),
    ],
)
def test_a_file_that_is_no_checkpoint(export_refused, tmp_path: Path, name: str, data: bytes):
    path = tmp_path / name
    path.write_bytes(data)
    export_refused(path, says=("file",))


def test_other_things_that_are_no_checkpoint(export_refused, bundle: Path, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    export_refused(empty, says=("no checkpoint", "config.json", "feature_map.json"))
    export_refused(tmp_path / "nothing", says=("no such file or folder",))
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    export_refused(tmp_path / "archive.pt", says=("not a checkpoint",))
    torch.save([1, 2, 3], tmp_path / "list.pt")
    export_refused(tmp_path / "list.pt", says=("not a native checkpoint", "'ckv'"))


def test_a_bundle_is_no_model(refused: Refuse, bundle: Path, out: Path):
    refused(bundle, "--out", out, watched=out, says=("no checkpoint", str(bundle)))


def test_a_truncated_checkpoint(export_refused, native, tmp_path: Path):
    path = native()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    export_refused(path, says=("truncated", "copy it again"))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code(export_refused, tmp_path: Path, protocol: int):
    """A bare pickle; the marker would appear if anything in it were executed."""
    marker = tmp_path / "executed"
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"state_dict": Runs(marker)}, protocol=protocol))
    export_refused(path, says=("file",))
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.is_dir(), "this pickle does run code where it is trusted"


def test_a_checkpoint_that_would_run_code(export_refused, run_copy: Path, tmp_path: Path):
    """torch.save's own format, native and in a run folder, with an object that runs code."""
    marker = tmp_path / "executed"
    torch.save({"format": "ckv", "version": 1, "config": Runs(marker)}, tmp_path / "model.pt")
    export_refused(tmp_path / "model.pt", says=("refused", "nothing in it was executed", "mkdir"))
    (weights,) = run_copy.glob("*.model")
    torch.save({"W_a.weight": Runs(marker)}, weights)
    export_refused(run_copy, says=("refused", "nothing in it was executed", "mkdir"))
    assert not marker.exists()
    torch.load(weights, weights_only=False)
    assert marker.is_dir(), "this checkpoint does run code where it is trusted"


def test_a_yaml_that_would_run_code(export_refused, run_copy: Path, tmp_path: Path):
    marker = tmp_path / "executed"
    text = f'SIM_MicroVideo_like_sim_micro: !!python/object/apply:os.mkdir ["{marker}"]\n'
    (run_copy / "model_config.yaml").write_text(text)
    export_refused(run_copy, says=("model_config.yaml",))
    assert not marker.exists()


def test_an_unknown_kind(export_refused, native, checkpoint):
    config = checkpoint.spec.to_dict() | {"kind": "simm"}
    export_refused(
        native(config=config), says=("kind", "sim, eta, sdim, twin", "'simm'", "mean 'sim'?")
    )


def test_a_version_of_the_future(export_refused, native):
    export_refused(native(version=2), says=("version must be 1", "got 2", "newer ckv-export"))


def test_a_configuration_that_is_none(export_refused, native, checkpoint):
    config = checkpoint.spec.to_dict()
    export_refused(native(config=None), says=("model configuration", "mapping"))
    export_refused(native(config=config | {"windoww": 3}), says=("'windoww'", "mean 'window'?"))
    export_refused(native(config=config | {"options": {"topk": "many"}}), says=("topk", "'many'"))
    export_refused(native(config=config | {"options": {}}), says=("topk",))
    export_refused(native(config=config | {"window": 1}), says=("window", "at least 2", "got 1"))


def features_of(folder: Path) -> dict[str, dict]:
    listed = json.loads((folder / "feature_map.json").read_text())["features"]
    return {name: spec for entry in listed for name, spec in entry.items()}


def test_a_feature_map_that_does_not_fit(export_refused, run_copy: Path, checkpoint):
    original = (run_copy / "feature_map.json").read_text()
    vocab = features_of(run_copy)["item_id"]["vocab_size"]
    width = checkpoint.state["embedding.item_id.table"].shape[1]

    def entry(features: list, name: str) -> dict:
        return next(e[name] for e in features if name in e)

    spoil_features(run_copy, lambda f: entry(f, "item_id").update(vocab_size=vocab - 1))
    export_refused(run_copy, says=("item_id", f"{vocab - 1}", f"[{vocab}, {width}]"))

    (run_copy / "feature_map.json").write_text(original)
    spoil_features(run_copy, lambda f: f.append({"shop_id": dict(entry(f, "item_id"))}))
    export_refused(run_copy, says=("shop_id",))

    (run_copy / "feature_map.json").write_text(original)
    spoil_features(run_copy, lambda f: f.remove({"cate_id": entry(f, "cate_id")}))
    export_refused(run_copy, says=("cate_id",))

    (run_copy / "feature_map.json").write_text(original)
    spoil_features(run_copy, lambda f: [s.pop("source", 0) for e in f for s in e.values()])
    export_refused(run_copy, says=("item",))

    (run_copy / "feature_map.json").write_text(original)
    spoil_features(run_copy, lambda f: entry(f, "cate_id").update(type="categoric"))
    export_refused(run_copy, says=("categoric", "cate_id"))

    (run_copy / "feature_map.json").write_text(original[: len(original) // 2])
    export_refused(run_copy, says=("feature_map.json",))


def test_parts_of_a_run_folder_that_are_missing_or_many(export_refused, run_copy: Path):
    (weights,) = run_copy.glob("*.model")
    shutil.copyfile(weights, run_copy / "second.model")
    export_refused(run_copy, says=("2 *.model files", "second.model", "--weights"))
    export_refused(run_copy, "--weights", "secnod.model", says=("mean 'second.model'?",))
    export_refused(run_copy, "--weights", "second.model", "--params", "nobody", says=("nobody",))
    (run_copy / "second.model").unlink()
    (run_copy / "model_config.yaml").rename(run_copy / "elsewhere")
    export_refused(run_copy, says=("no model_config.yaml", "--params"))


def test_a_baseline_without_collectivekv(export_refused, samples: Path):
    says = ("this is a baseline model without CollectiveKV",)
    export_refused(samples / "neg_baseline_sim", says=says)


@pytest.fixture
def nobody() -> Iterator[Path]:
    """Give up root's right to read everything; yield a folder that all may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(before)


def test_paths_that_may_not_be_read_or_written(refused: Refuse, checkpoint, nobody: Path):
    """Refused by the system, not by us: still one sentence."""
    model = nobody / "model.pt"
    save_native(model, checkpoint.spec, checkpoint.state)
    out = nobody / "out"
    model.chmod(0)
    refused(model, "--out", out, watched=out, says=("can't be read", "Permission denied"))
    model.chmod(0o644)
    closed = nobody / "closed"
    closed.mkdir(mode=0o555)
    refused(model, "--out", closed, watched=closed, says=("Permission denied",))
    refused(model, "--out", closed / "deep", watched=closed, says=("Permission denied",))
    secret = nobody / "secret"
    secret.mkdir(mode=0)
    refused(secret / "model.pt", "--out", out, watched=out, says=())
    refused(secret, "--out", out, watched=out, says=())
    secret.chmod(0o755)


def test_odd_paths(refused: Refuse, tmp_path: Path):
    out, loop = tmp_path / "out", tmp_path / "loop"
    loop.symlink_to(loop)
    refused(loop, "--out", out, watched=out, says=(str(loop),))
    refused("x" * 300, "--out", out, watched=out, says=())
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    refused(pipe, "--out", out, watched=out, says=(str(pipe),))


def test_weights_and_params_are_for_run_folders(refused: Refuse, checkpoint, tmp_path: Path):
    model, out = tmp_path / "model.pt", tmp_path / "out"
    save_native(model, checkpoint.spec, checkpoint.state)
    for option in ("--weights", "--params"):
        refused(model, "--out", out, option, "x", watched=out, says=(option, "run folders"))

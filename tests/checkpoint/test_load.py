"""What a path is, and the real samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ckv_export.checkpoint.load import Checkpoint, load_checkpoint
from ckv_export.checkpoint.native import save_native
from ckv_export.errors import CheckpointError


@pytest.mark.parametrize(
    ("sample", "kind", "user", "item", "d_event", "options"),
    [
        ("sim_micro", "sim", [], ["item_id", "cate_id", "image_emb_dim64"], 96, {"topk": 50}),
        (
            "sim_ebnerd",
            "sim",
            ["user_id", "device_type", "age", "topics", "impression_hour"],
            ["article_id", "category", "subcategory"],
            96,
            {"topk": 50},
        ),
        ("sdim_micro", "sdim", [], ["item_id", "cate_id", "image_emb_dim64"], 96, {"l2_norm": 0}),
    ],
)
def test_a_sample_loads(samples, sample, kind, user, item, d_event, options):
    checkpoint = load_checkpoint(samples / sample)
    spec = checkpoint.spec
    assert (spec.kind, spec.d_event, dict(spec.options)) == (kind, d_event, options)
    assert [f.name for f in spec.user_features] == user
    assert [f.name for f in spec.item_features] == item
    assert (spec.window, spec.max_len, spec.mask_alignment) == (50, 200, "fuxictr")
    assert spec.dnn.hidden == (64, 32)
    assert spec.dnn.activations == ("relu", "relu")
    assert checkpoint.name.endswith(sample)
    assert (checkpoint.source, checkpoint.notes) == ("fuxictr", ())
    assert {p.suffix for p in checkpoint.files} == {".model", ".json", ".yaml"}
    assert all(t.dtype == torch.float32 for t in checkpoint.state.values())


def test_pooled_sequences_and_roles_of_a_sample(samples):
    spec = load_checkpoint(samples / "sim_ebnerd").spec
    features = {f.name: f for f in spec.features}
    assert features["topics"].role == "user"
    assert features["subcategory"].role == "item"
    for name in ("topics", "subcategory"):
        feature = features[name]
        assert (feature.kind, feature.length, feature.pooling) == ("sequence", 5, "mean")
    assert (spec.attention.d, spec.attention.num_heads, spec.attention.user_k) == (64, 2, 4)


def _golden(folder: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The recorded cases, those left out in which the authors' code crashes."""
    cases = json.loads((folder / "golden.json").read_text())["cases"]
    data = np.load(folder / "golden.npz")
    for name, case in cases.items():
        if not case.get("original_fails"):
            keys = [k for k in data.files if k.startswith(f"{name}/")]
            yield {k.removeprefix(f"{name}/"): torch.from_numpy(data[k]) for k in keys}


@pytest.mark.parametrize("sample", ["sim_micro", "sim_ebnerd", "sdim_micro"])
def test_the_imported_scoring_network_gives_the_recorded_scores(samples, sample):
    state = load_checkpoint(samples / sample).state
    for golden in _golden(samples / sample):
        x = golden["int/dnn_in"]
        for i in range(2):
            x = x @ state[f"dnn.{i}.weight"].T + state[f"dnn.{i}.bias"]
            x = (x - state[f"dnn.{i}.norm.mean"]) / torch.sqrt(state[f"dnn.{i}.norm.var"] + 1e-5)
            x = torch.relu(x * state[f"dnn.{i}.norm.weight"] + state[f"dnn.{i}.norm.bias"])
        score = torch.sigmoid(x @ state["dnn.2.weight"].T + state["dnn.2.bias"])
        torch.testing.assert_close(score, golden["out/y_pred"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("sample", ["sim_micro", "sdim_micro"])
def test_the_imported_router_gives_the_recorded_rows(samples, sample):
    state = load_checkpoint(samples / sample).state
    for golden in _golden(samples / sample):
        parts = [
            state["embedding.item_id.table"][golden["in/item/item_id"]],
            state["embedding.cate_id.table"][golden["in/item/cate_id"]],
            golden["in/item/image_emb_dim64"],
        ]
        for side in ("k", "v"):
            recorded = golden[f"int/{side.upper()}_idx"]
            events = torch.cat(parts, dim=-1)[:, -1 - recorded.shape[1] : -1]
            rows = (events @ state[f"attention.0.{side}.router.weight"].T).argmax(-1)
            # where the two best rows are closer than rounding, either is right
            clear = golden[f"int/{side.upper()}_margin"] > 1e-5
            assert torch.equal(rows[clear], recorded[clear].long())
            user = events @ state[f"attention.0.{side}.weight"].T
            torch.testing.assert_close(
                torch.nn.functional.silu(user), golden[f"int/usr_{side}"], rtol=0, atol=1e-5
            )


def test_a_baseline_is_refused(samples):
    with pytest.raises(CheckpointError, match="baseline model without CollectiveKV"):
        load_checkpoint(samples / "neg_baseline_sim")


def test_a_weights_file_names_its_folder(make_run):
    run = make_run()
    folder = run.write()
    checkpoint = load_checkpoint(folder / "toy_run.model")
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.name == "toy_run"
    with pytest.raises(CheckpointError, match="leave out --weights"):
        load_checkpoint(folder / "toy_run.model", weights="toy_run.model")
    shutil.copy(folder / "toy_run.model", folder / "other.model")
    assert load_checkpoint(folder / "other.model").files[0].name == "other.model"
    with pytest.raises(CheckpointError, match="no experiment 'another'"):
        load_checkpoint(folder / "toy_run.model", params="another")


def test_native_forms_are_told_apart(make_run, tmp_path):
    run = load_checkpoint(make_run().write())
    for path in (tmp_path / "small.pt", tmp_path / "small"):
        save_native(path, run.spec, run.state)
        checkpoint = load_checkpoint(path)
        assert (checkpoint.source, checkpoint.name) == ("native", "small")
        for choice in ("weights", "params"):
            with pytest.raises(CheckpointError, match="for FuxiCTR run folders only"):
                load_checkpoint(path, **{choice: "x"})
    (tmp_path / "small" / "feature_map.json").touch()
    assert load_checkpoint(tmp_path / "small").source == "native"


def test_a_folder_that_is_neither(tmp_path):
    for name in ("some.model", "a.pt", "b.pt", "c.pt", "a.txt"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"no checkpoint: .*feature_map.json") as caught:
        load_checkpoint(tmp_path)
    assert str(caught.value).endswith("; it has a.pt, b.pt, c.pt")


def test_a_name_that_no_file_can_have(tmp_path, make_run):
    with pytest.raises(CheckpointError, match=r"can't be read: File name too long"):
        load_checkpoint(tmp_path / ("x" * 5000))
    with pytest.raises(CheckpointError, match=r"can't be read: File name too long"):
        load_checkpoint(make_run().write(), weights="x" * 5000)


@pytest.mark.parametrize("name", ["x.pt", "x.model"])
def test_a_path_that_is_not_there(tmp_path, name):
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_checkpoint(tmp_path / name, weights="y")

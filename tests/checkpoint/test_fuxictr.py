"""Run folders: kinds, options, agreement of the files, strictness."""

from __future__ import annotations

import pytest
import torch

from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.checkpoint.names import KIND_MARKS, LONG
from ckv_export.errors import CheckpointError

ROTATED = {"eta": (8, 4), "sdim": (8, 3, 4)}


def _refused(run) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(run.write())
    message = str(caught.value)
    assert message.startswith(f"{run.folder}: ")
    return message


@pytest.mark.parametrize("kind", sorted(LONG))
def test_every_kind(make_run, kind):
    run = make_run(kind)
    checkpoint = load_checkpoint(run.write())
    spec = checkpoint.spec
    assert spec.kind == kind
    options = {"sim": {"topk": 3}, "twin": {"topk": 3}, "sdim": {"l2_norm": True}}
    assert dict(spec.options) == options.get(kind, {"topk": 3, "use_scale": True})
    for key, native in LONG[kind].items():
        stored = run.state[key]
        assert torch.equal(
            checkpoint.state[native],
            stored.reshape(ROTATED.get(kind, ())) if native == "long.rotations" else stored,
        )
    for key, native in (("global_K_pool", "k.pool"), ("router_V.weight", "v.router.weight")):
        stored = run.state[f"short_attention.{key}"]
        assert torch.equal(checkpoint.state[f"attention.0.{native}"], stored)


@pytest.mark.parametrize("shared", ["k", "v"])
def test_one_side_without_a_pool(make_run, shared):
    checkpoint = load_checkpoint(make_run(shared=shared).write())
    attention = checkpoint.spec.attention
    other = "v" if shared == "k" else "k"
    assert (attention.pool_rows(shared), attention.user_width(shared)) == (10, 2)
    assert (attention.pool_rows(other), attention.user_width(other)) == (0, 8)
    assert f"attention.0.{other}.pool" not in checkpoint.state


def test_no_pool_at_all(make_run):
    assert "baseline model without CollectiveKV" in _refused(make_run(shared=""))


def test_eta_without_scale(make_run):
    run = make_run("eta")
    run.params["use_scale"] = False
    checkpoint = load_checkpoint(run.write())
    assert checkpoint.notes == ()
    spec = checkpoint.spec
    assert spec.attention.use_scale is False
    assert spec.options["use_scale"] is False


def test_a_model_class_of_another_name_and_a_switch_that_sim_has_not(make_run):
    run = make_run()
    run.params |= {"model": "SIM_with_pools", "use_scale": False}
    assert load_checkpoint(run.write()).spec.attention.use_scale is True


def test_half_precision_is_noted(make_run):
    run = make_run()
    run.state["W_a.weight"] = run.state["W_a.weight"].half()
    checkpoint = load_checkpoint(run.write())
    assert checkpoint.notes == ("weights stored as float16 were converted to float32",)


def test_sdim_without_scale_is_noted(make_run):
    run = make_run("sdim")
    run.params["use_scale"] = False
    checkpoint = load_checkpoint(run.write())
    assert checkpoint.spec.attention.use_scale is False
    assert "use_scale is false" in checkpoint.notes[0]


@pytest.mark.parametrize("kind", ["eta", "sdim"])
def test_redrawn_hashes_are_noted(make_run, kind):
    run = make_run(kind)
    run.params["reuse_hash"] = False
    (note,) = load_checkpoint(run.write()).notes
    assert "reuse_hash is false" in note
    assert "0.2" in note


def test_an_unknown_model(make_run):
    run = make_run("twin")
    del run.state["long_attention.W_h.weight"]
    message = _refused(run)
    assert "of no known model" in message
    assert all(kind.upper() in message for kind in KIND_MARKS.values())


@pytest.mark.parametrize(
    "key",
    [
        "short_attention.W_q.weight",
        "short_attention.router_K.weight",
        "short_attention.global_V_pool",
        "long_attention.W_o.weight",
        "W_b.weight",
        "dnn.mlp.0.weight",
        "dnn.mlp.1.running_var",
        "dnn.mlp.8.bias",
        "embedding_layer.embedding_layer.embedding_layers.age.weight",
    ],
)
def test_a_missing_tensor_is_named(make_run, key):
    run = make_run()
    run.state[key + "_x"] = run.state.pop(key)
    message = _refused(run)
    assert f"no tensor {key!r}" in message
    assert "did you mean" in message


def test_leftovers_are_named(make_run):
    run = make_run()
    run.state |= {f"short_attention.W_q.bias{i}": torch.zeros(1) for i in range(6)}
    message = _refused(run)
    assert "6 of the tensors have no place in this model: 'short_attention.W_q.bias0'" in message
    assert "did you mean 'short_attention.W_q.weight'" in message


def test_training_only_tensors_are_ignored(make_run):
    run = make_run()
    run.state["dnn_aux.mlp.1.running_mean"] = torch.zeros(3)
    assert not any("aux" in name for name in load_checkpoint(run.write()).state)


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("short_attention.W_q.weight", (8, 7), "must be [8, 8], got [8, 7]: attention is 8 wide"),
        ("short_attention.global_K_pool", (10, 5), "must be [10, 6], got [10, 5]"),
        ("short_attention.global_K_pool", (9, 6), "must be [10, 6], got [9, 6]"),
        ("short_attention.router_V.weight", (10, 8, 1), "must have 2 axes, got [10, 8, 1]"),
        ("W_b.weight", (4, 8), "must be [8, 8], got [4, 8]: attention is 8 wide"),
        ("dnn.mlp.0.weight", (6, 30), "must be [6, 28], got [6, 30]: attention is 8 wide"),
        ("dnn.mlp.4.bias", (4,), "must be [5], got [4]"),
        ("dnn.mlp.8.weight", (2, 5), "must be [1, 5], got [2, 5]: attention is 8 wide"),
    ],
)
def test_a_wrong_shape_is_told_under_its_own_name(make_run, key, shape, words):
    run = make_run()
    run.state[key] = torch.zeros(shape)
    message = _refused(run)
    assert repr(key) in message
    assert words in message


def test_a_user_part_that_leaves_no_room_for_the_pool(make_run):
    run = make_run()
    run.state["short_attention.W_k.weight"] = torch.zeros(8, 8)
    assert "user_k must be below d = 8 beside a pool, got 8" in _refused(run)


@pytest.mark.parametrize(
    ("kind", "name", "value", "words"),
    [
        ("sim", "attention_dim", 16, "says attention_dim 16, but the rows of"),
        ("sim", "model", "TWIN", "says model 'TWIN', but the weights are of 'SIM'"),
        ("sim", "gsu_type", "hard", "gsu_type must be 'soft', got 'hard'"),
        ("sim", "dataset_id", "other", "says dataset_id 'other', but feature_map.json is of 'toy'"),
        ("sim", "num_heads", 3, "num_heads must divide d = 8, got 3"),
        ("sim", "short_seq_len", 1, "window must be a whole number of at least 2"),
        ("sim", "topk", "many", "topk must be a whole number, got 'many'"),
        ("sim", "topk", True, "topk must be a whole number, got True"),
        ("eta", "hash_bits", 32, "says hash_bits 32, but the last axis"),
        ("eta", "use_scale", 1, "use_scale must be true or false, got 1"),
        ("sdim", "num_hashes", 2, "says num_hashes 2, but the hashes"),
    ],
)
def test_a_yaml_that_does_not_fit(make_run, kind, name, value, words):
    run = make_run(kind)
    run.params[name] = value
    assert words in _refused(run)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("sim", "num_heads"),
        ("sim", "short_seq_len"),
        ("sim", "max_len"),
        ("sim", "dnn_activations"),
        ("sim", "topk"),
        ("twin", "topk"),
        ("eta", "topk"),
        ("eta", "use_scale"),
        ("eta", "reuse_hash"),
        ("sdim", "reuse_hash"),
        ("sdim", "l2_norm"),
    ],
)
def test_a_fact_that_the_yaml_lacks(make_run, kind, name):
    run = make_run(kind)
    run.params |= {name: None, 7: "a key that is no text"}
    assert f"experiment 'toy_run' of model_config.yaml lacks {name!r}" in _refused(run)


def test_rotations_and_powers_are_checked(make_run):
    run = make_run("sdim")
    run.state["powers_of_two"] = torch.tensor([1.0, 2.0, 4.0, 9.0])
    assert "'powers_of_two' must be 2^0 to 2^3, got [1.0, 2.0, 4.0, 9.0]" in _refused(run)
    run = make_run("eta")
    run.state["random_rotations"] = torch.zeros(2, 8, 4)
    assert "must start with an axis of 1" in _refused(run)
    run.state["random_rotations"] = torch.zeros(1, 8, 3, 4)
    assert "'random_rotations' must have 3 axes" in _refused(run)


def test_twin_with_cross_features(make_run):
    run = make_run("twin")
    run.state["long_attention.W_c"] = torch.zeros(1, 1, 4)
    assert "Kc_cross_features" in _refused(run)


def test_nan_is_named(make_run):
    run = make_run()
    run.state["W_a.weight"][1, 2] = float("nan")
    assert "'W_a.weight' holds NaN" in _refused(run)


def test_a_file_that_is_no_state_dict(make_run):
    run = make_run()
    folder = run.write()
    torch.save([1], folder / "toy_run.model")
    with pytest.raises(CheckpointError, match=r"toy_run.model: must hold a state dict, got list"):
        load_checkpoint(folder)
    torch.save({"state_dict": run.state}, folder / "toy_run.model")
    with pytest.raises(CheckpointError, match="maps names to tensors, got dict for 'state_dict'"):
        load_checkpoint(folder)

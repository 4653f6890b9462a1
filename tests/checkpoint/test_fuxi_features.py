"""Features and their embedding tensors."""

from __future__ import annotations

import json

import pytest
import torch

from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.errors import CheckpointError


@pytest.fixture
def resized(fuxi):
    """Fit the attention-independent rest of a run to features `user` wide besides the item's."""

    def resize(run, user_width):
        run.state = {k: v for k, v in run.state.items() if not k.startswith("dnn.mlp")}
        run.state |= fuxi.mlp_state(fuxi.mlp(user_width + 3 * 8))
        return run

    return resize


def _load(run):
    checkpoint = load_checkpoint(run.write())
    return checkpoint, {f.name: f for f in checkpoint.spec.features}


def _refused(run) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(run.write())
    return str(caught.value)


def test_order_roles_and_what_is_skipped(make_run):
    run = make_run()
    run.features["click"] = {"type": "numeric"}
    run.features["age"]["source"] = "user"
    checkpoint, features = _load(run)
    assert list(features) == ["item_id", "age", "cate_id"]
    assert [f.role for f in features.values()] == ["item", "user", "item"]
    stored = run.state["embedding_layer.embedding_layer.embedding_layers.age.weight"]
    assert torch.equal(checkpoint.state["embedding.age.table"], stored)


def test_every_type_of_user_feature(make_run, fuxi, resized):
    run = resized(make_run(), 4 + 4 + 6 + 4 + 3 + 5)
    run.features |= {
        "tags": fuxi.sequence(11, 3),
        "words": fuxi.sequence(
            12, 2, feature_encoder=["layers.MaskedSumPooling( )"], embedding_dim=6
        ),
        "price": {"type": "numeric", "source": "", "feature_encoder": "nn.Identity()"},
        "given": {"type": "embedding", "feature_encoder": "nn.Identity()", "emb_output_dim": 3},
        "long": {"type": "embedding", "embedding_dim": 5, "pretrain_dim": 7},
    }
    run.state |= {
        f"{fuxi.TABLES}tags.weight": fuxi.table(11),
        f"{fuxi.TABLES}words.weight": fuxi.table(12, 6),
        f"{fuxi.TABLES}price.weight": torch.randn(4, 1),
        f"{fuxi.ENCODERS}long.weight": torch.randn(5, 7),
    }
    checkpoint, features = _load(run)
    found = {n: (f.kind, f.width, f.length, f.pooling, f.projected) for n, f in features.items()}
    assert found["tags"] == ("sequence", 4, 3, "mean", False)
    assert found["words"] == ("sequence", 6, 2, "sum", False)
    assert found["price"] == ("numeric", 4, 0, "mean", False)
    assert found["given"] == ("vector", 3, 3, "mean", False)
    assert found["long"] == ("vector", 5, 7, "mean", True)
    assert checkpoint.state["embedding.price.weight"].shape == (4, 1)
    assert checkpoint.state["embedding.long.weight"].shape == (5, 7)
    assert not any("given" in name for name in checkpoint.state)


@pytest.mark.parametrize("stored", ["equal", "same"])
def test_a_shared_table_is_held_once(make_run, fuxi, resized, stored):
    run = resized(make_run(), 3 * 4)
    run.features |= {
        "last_item": fuxi.categorical(20, share_embedding="item_id"),
        "items": fuxi.sequence(20, 3, share_embedding="last_item"),
    }
    table = run.state[f"{fuxi.TABLES}item_id.weight"]
    for name in ("last_item", "items"):
        copy = table if stored == "same" else table.clone()
        run.state[f"{fuxi.TABLES}{name}.weight"] = copy
    checkpoint, features = _load(run)
    # the chain ends at the feature that holds the table
    assert features["last_item"].shares == features["items"].shares == "item_id"
    assert features["items"].vocab_size == 20
    assert "embedding.items.table" not in checkpoint.state


def test_a_shared_table_with_two_contents_is_refused(make_run, fuxi, resized):
    run = resized(make_run(), 2 * 4)
    run.features["last_item"] = fuxi.categorical(20, share_embedding="item_id")
    run.state[f"{fuxi.TABLES}last_item.weight"] = fuxi.table(20)
    assert "'last_item' shares the embedding of 'item_id', but" in _refused(run)


@pytest.mark.parametrize("target", ["last_item", "absent"])
def test_sharing_with_no_earlier_feature_means_an_own_table(make_run, fuxi, resized, target):
    run = resized(make_run(), 2 * 4)
    run.features["age"]["share_embedding"] = target
    run.features["last_item"] = fuxi.categorical(7)
    run.state[f"{fuxi.TABLES}last_item.weight"] = fuxi.table(7)
    checkpoint, features = _load(run)
    assert features["age"].shares is features["last_item"].shares is None
    assert "embedding.age.table" in checkpoint.state


def test_use_features_chooses_and_orders(make_run, fuxi):
    run = make_run()
    run.params["use_features"] = ["cate_id", "age", "item_id"]
    run.features["unused"] = fuxi.categorical(3)
    _, features = _load(run)
    assert list(features) == ["cate_id", "age", "item_id"]
    run.params["use_features"] = [["age"]]
    assert "names a feature ['age'] that is not among" in _refused(run)
    run.params["use_features"] = ["cate_id", "item_id", "agee"]
    assert "names a feature 'agee'" in _refused(run)
    assert "did you mean 'age'" in _refused(run)


def test_an_empty_choice_of_features_is_none(make_run):
    run = make_run()
    run.params["use_features"] = []
    assert list(_load(run)[1]) == ["item_id", "age", "cate_id"]


def test_a_feature_left_out_leaves_its_table_over(make_run):
    run = make_run()
    run.params["use_features"] = ["item_id", "cate_id"]
    assert "have no place in this model: 'embedding_layer" in _refused(run)


def test_feature_specs_override(make_run, fuxi, resized):
    run = resized(make_run(), 6)
    run.state[f"{fuxi.TABLES}age.weight"] = fuxi.table(7, 6)
    assert "width 4, but its table in the checkpoint is [7, 6]" in _refused(run)
    run.params["feature_specs"] = [{"name": ["age"], "embedding_dim": 6}]
    _, features = _load(run)
    assert features["age"].width == 6
    run.params["feature_specs"] = [{"name": "agee", "embedding_dim": 6}]
    assert "did you mean 'age'" in _refused(run)
    for entry in ({"embedding_dim": 6}, 3):
        run.params["feature_specs"] = [entry]
        assert "an entry of feature_specs needs a name" in _refused(run)


def test_a_size_that_the_map_does_not_tell(make_run):
    run = make_run()
    del run.features["age"]["vocab_size"]
    assert _load(run)[1]["age"].vocab_size == 7


def test_a_map_without_labels(make_run):
    folder = make_run().write()
    data = json.loads((folder / "feature_map.json").read_text())
    del data["labels"]
    (folder / "feature_map.json").write_text(json.dumps(data))
    assert len(load_checkpoint(folder).spec.features) == 3


def test_no_item_feature(make_run):
    run = make_run()
    for spec in run.features.values():
        spec["source"] = ""
    assert 'no feature has the source "item"' in _refused(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "categorial"}, "type must be meta, categorical, .*mean 'categorical'"),
        ({"type": None}, "lacks 'type'"),
        ({"vocab_size": 8}, "feature 'age' in feature_map.json says vocab_size 8 .* is .7, 4."),
        ({"embedding_dim": 5}, "width 5, but its table in the checkpoint is .7, 4."),
        ({"feature_encoder": "nn.Linear(4, 4)"}, "feature_encoder must be none"),
        ({"type": "sequence"}, "lacks 'max_len'"),
        (
            {"type": "sequence", "max_len": 3, "feature_encoder": "layers.KMaxPooling(1, 1)"},
            "must be layers.MaskedAveragePooling.* or layers.MaskedSumPooling.*KMaxPooling",
        ),
        ({"type": "sequence", "max_len": 0}, "length must be a whole number of at least 1"),
        ({"type": "numeric", "feature_encoder": "nn.Linear(1, 4)"}, "must be none .*'numeric'"),
        ({"type": "embedding", "feature_encoder": "nn.Tanh()"}, "must be nn.Identity"),
        ({"type": "embedding"}, "no tensor .*feature_encoders.age.weight"),
    ],
)
def test_a_feature_that_can_not_be_read(make_run, change, words):
    run = make_run()
    run.features["age"] |= change
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(run.write())


@pytest.mark.parametrize(
    ("spec", "folder", "shape", "words"),
    [
        ({"type": "numeric"}, "TABLES", (3, 1), "says width 4, but its weight .* has 3 rows"),
        ({"type": "embedding"}, "ENCODERS", (3, 7), "says width 4, but its weight .* has 3 rows"),
        ({"type": "embedding", "pretrain_dim": 8}, "ENCODERS", (4, 7), "pretrain_dim 8, but .* 7"),
    ],
)
def test_the_size_of_a_weight_is_checked(make_run, fuxi, spec, folder, shape, words):
    run = make_run()
    run.features["age"] = spec
    run.state[f"{getattr(fuxi, folder)}age.weight"] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(run.write())


def test_a_vector_whose_width_nobody_tells(make_run):
    run = make_run()
    run.features["age"] = {"type": "embedding", "feature_encoder": "nn.Identity()"}
    run.params["embedding_dim"] = None
    assert "lacks 'embedding_dim'" in _refused(run)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "feature_map.json is not JSON"),
        pytest.param("[" * 100_000, "feature_map.json is not JSON", id="deep"),
        ("[]", "no FuxiCTR feature map"),
        ('{"features": {}}', "no FuxiCTR feature map"),
        ('{"features": [3]}', "a feature is written"),
        ('{"features": [{"a": 3}]}', "a feature is written"),
        ('{"features": [{"a": {}}, {"a": {}}]}', "lists the feature 'a' twice"),
    ],
)
def test_a_feature_map_that_can_not_be_used(make_run, text, words):
    folder = make_run().write()
    (folder / "feature_map.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(folder)

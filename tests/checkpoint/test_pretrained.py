"""Pretrained embeddings, folded: compared with the formula of one row at a time."""

from __future__ import annotations

import pytest
import torch

from ckv_export.checkpoint import pretrained
from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.errors import CheckpointError

VOCAB, OOV = 9, 4


def _prefix(fuxi) -> str:
    return f"{fuxi.TABLES}cate_id."


@pytest.fixture
def make_pretrained(make_run, fuxi):
    """Return a factory of runs whose cate_id has a pretrained embedding."""

    def make(usage, inner, frozen, bias=False):
        run = make_run()
        prefix, width = _prefix(fuxi), fuxi.WIDTH
        del run.state[prefix + "weight"]
        run.features["cate_id"] |= {
            "pretrained_emb": "pretrained_cate_id.h5",
            "pretrain_dim": inner,
            "pretrain_usage": usage,
            "freeze_emb": frozen,
            "oov_idx": OOV,
        }
        run.state[prefix + "pretrain_embedding.weight"] = torch.randn(VOCAB, inner)
        if usage != "init":
            run.state[prefix + "id_embedding.weight"] = torch.randn(VOCAB, width)
        if usage == "concat" or inner != width:
            columns = inner + (width if usage == "concat" else 0)
            run.state[prefix + "proj.weight"] = torch.randn(width, columns)
            if bias:
                run.state[prefix + "proj.bias"] = torch.randn(width)
        return run

    return make


def _row(state, prefix, usage, frozen, i):
    """What FuxiCTR computes for id `i`."""
    pre = state[prefix + "pretrain_embedding.weight"][i]
    known = float(i <= OOV)
    pre = pre if frozen else pre * known
    weight = state.get(prefix + "proj.weight")
    bias = state.get(prefix + "proj.bias", 0.0)
    if usage == "concat":
        own = state[prefix + "id_embedding.weight"][i] * known
        return weight @ torch.cat([pre, own]) + bias
    out = pre if weight is None else weight @ pre + bias
    return out + state[prefix + "id_embedding.weight"][i] * known if usage == "sum" else out


@pytest.mark.parametrize("usage", ["init", "sum", "concat"])
@pytest.mark.parametrize("inner", [4, 7])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(("bias", "chunk"), [(False, 65536), (True, 2), (False, 4)])
def test_folding(make_pretrained, fuxi, monkeypatch, usage, inner, frozen, bias, chunk):
    monkeypatch.setattr(pretrained, "ROWS_AT_ONCE", chunk)
    run = make_pretrained(usage, inner, frozen, bias)
    table = load_checkpoint(run.write()).state["embedding.cate_id.table"]
    expected = [_row(run.state, _prefix(fuxi), usage, frozen, i) for i in range(VOCAB)]
    torch.testing.assert_close(table, torch.stack(expected), rtol=0, atol=1e-6)


def test_a_shared_pretrained_table(make_pretrained, fuxi):
    run = make_pretrained("sum", 7, True)
    run.features["age"]["share_embedding"] = "cate_id"
    # age must stand after the feature whose table it shares
    run.features["age"] = run.features.pop("age")
    del run.state[f"{fuxi.TABLES}age.weight"]
    for part in ("pretrain_embedding.weight", "id_embedding.weight", "proj.weight"):
        run.state[f"{fuxi.TABLES}age.{part}"] = run.state[_prefix(fuxi) + part].clone()
    spec = load_checkpoint(run.write()).spec
    assert spec.features[-1].shares == "cate_id"


@pytest.mark.parametrize("name", ["oov_idx", "freeze_emb"])
def test_what_the_map_must_tell(make_pretrained, name):
    run = make_pretrained("sum", 7, True)
    del run.features["cate_id"][name]
    with pytest.raises(CheckpointError, match=f"lacks '{name}'"):
        load_checkpoint(run.write())


@pytest.mark.parametrize(
    ("usage", "key", "shape", "words"),
    [
        ("sum", "id_embedding.weight", (9, 3), r"must be \[9, 4\], got \[9, 3\]"),
        ("sum", "proj.weight", (4, 6), r"must be \[4, 7\], got \[4, 6\]"),
        ("concat", "proj.weight", (4, 7), r"must be \[4, 11\], got \[4, 7\]"),
        ("init", "pretrain_embedding.weight", (8, 7), r"vocab_size 9 .* is \[8, 4\]"),
        ("init", "pretrain_embedding.weight", (9,), r"must have 2 axes"),
        ("sum", "proj.weight", (4,), r"must have 2 axes"),
        ("sum", "proj.bias", (3,), r"must be \[4\], got \[3\]"),
        ("sum", "proj.bias", (4, 1), r"must have 1 axes"),
    ],
)
def test_parts_that_do_not_fit(make_pretrained, fuxi, usage, key, shape, words):
    run = make_pretrained(usage, 7, True)
    run.state[_prefix(fuxi) + key] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(run.write())


def test_a_bias_of_no_projection(make_pretrained, fuxi):
    run = make_pretrained("sum", fuxi.WIDTH, True)
    run.state[_prefix(fuxi) + "proj.bias"] = torch.zeros(fuxi.WIDTH)
    with pytest.raises(CheckpointError, match=r"no tensor .*proj.weight"):
        load_checkpoint(run.write())


def test_rows_are_taken_as_they_are_unless_told(make_pretrained, fuxi):
    run = make_pretrained("init", fuxi.WIDTH, True)
    del run.features["cate_id"]["pretrain_usage"]
    table = load_checkpoint(run.write()).state["embedding.cate_id.table"]
    assert torch.equal(table, run.state[_prefix(fuxi) + "pretrain_embedding.weight"])


def test_missing_parts_and_an_unknown_usage(make_pretrained, fuxi):
    run = make_pretrained("concat", 7, True)
    del run.state[_prefix(fuxi) + "proj.weight"]
    with pytest.raises(CheckpointError, match=r"no tensor .*proj.weight"):
        load_checkpoint(run.write())
    run.features["cate_id"]["pretrain_usage"] = "multiply"
    with pytest.raises(CheckpointError, match="must be init, sum, concat, got 'multiply'"):
        load_checkpoint(run.write())

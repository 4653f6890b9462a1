from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from ckv_export.contract import DnnSpec
from ckv_export.model.parameters import check_state
from ckv_export.training import initial_state
from ckv_export.training.demo import OPTIONS


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_kind_gets_a_whole_state(small_spec, kind: str) -> None:
    state = initial_state(small_spec(kind), 0)
    check_state(small_spec(kind), state)
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in state.values())


def test_free_sizes_are_filled_in(small_spec) -> None:
    eta, sdim, hstu = (initial_state(small_spec(kind), 0) for kind in ("eta", "sdim", "hstu"))
    assert eta["long.rotations"].shape == (64, 16)
    assert sdim["long.rotations"].shape == (64, 8, 4)
    assert hstu["attention.1.position_bias"].shape == (40,)
    assert hstu["attention.1.time_bias"].shape == (31,)


def test_padding_starts_at_zero_and_nothing_else_of_a_table(small_spec) -> None:
    table = initial_state(small_spec(), 0)["embedding.item_id.table"]
    assert not table[0].any()
    assert table[1:].any(dim=1).all()


def test_norms_start_as_identities(small_spec) -> None:
    dnn = DnnSpec((8, 6), ("dice", "prelu"), batch_norm=True)
    state = initial_state(dataclasses.replace(small_spec(), dnn=dnn), 0)
    x = torch.randn(5, 8)
    norm = {n: state[f"dnn.0.norm.{n}"] for n in ("mean", "var", "weight", "bias")}
    same = (x - norm["mean"]) / norm["var"].sqrt() * norm["weight"] + norm["bias"]
    assert torch.equal(same, x)
    assert state["dnn.0.activation.var"].eq(1).all()
    assert torch.equal(state["dnn.1.activation.weight"], nn.PReLU(6).weight)


def test_matrices_are_xavier_normal_and_tables_and_pools_small(small_spec) -> None:
    state, generator = initial_state(small_spec("eta"), 0), torch.Generator().manual_seed(1)
    spread = {name: t.std().item() for name, t in state.items() if t.dim() > 1}
    for name in ("dnn.0.weight", "attention.0.k.router.weight"):
        xavier = nn.init.xavier_normal_(torch.empty_like(state[name]), generator=generator)
        assert spread[name] == pytest.approx(xavier.std().item(), rel=0.1)
    assert spread["long.rotations"] == pytest.approx(1, rel=0.1)
    for name in ("embedding.item_id.table", "attention.0.k.pool"):
        assert 0.05 < spread[name] < 0.2


def test_the_seed_decides(small_spec) -> None:
    once, again, other = (initial_state(small_spec(), seed) for seed in (4, 4, 5))
    assert all(torch.equal(once[n], again[n]) for n in once)
    assert not torch.equal(once["attention.0.k.pool"], other["attention.0.k.pool"])

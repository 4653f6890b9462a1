"""Features to embeddings against loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ckv_testing.draw import RICH, draw_cases, draw_state, make_spec
from ckv_testing.slow import Slow

from ckv_export.contract import FeatureSpec
from ckv_export.model.embedding import Column, FeatureEmbedding, Projection, Table


def test_every_kind_of_feature_in_order(seed: int, rng: np.random.Generator):
    spec = make_spec("sim", features=RICH)
    state = draw_state(spec, rng)
    slow = Slow(spec, state)
    embed_item = FeatureEmbedding(spec.item_features, state)
    embed_user = FeatureEmbedding(spec.user_features, state)
    for case in draw_cases(spec, seed):
        given = {name: torch.from_numpy(a) for name, a in case.inputs.items()}
        candidates = embed_item([given[f"candidate_{f.name}"] for f in spec.item_features])
        users = embed_user([given[f"user_{f.name}"] for f in spec.user_features])
        for b in range(candidates.shape[0]):
            # Two fp32 additions and a division of halves.
            np.testing.assert_allclose(users[b], slow.user(case.inputs, b), rtol=1e-6, atol=0)
            expected = slow.embedded(case.inputs, "candidate", b)
            np.testing.assert_allclose(candidates[b], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_mean_counts_rows_that_do_not_sum_to_zero(length: int, rng: np.random.Generator):
    """As the paper authors' pooling does, whatever the id; a row of zeros is just the usual one."""
    table = rng.standard_normal((6, 3)).astype(np.float32)
    table[0] = 0.0
    table[4] = (1.5, -1.5, 0.0)
    ids = rng.integers(0, 6, (200, length)).astype(np.int32)
    got = Table(torch.from_numpy(table), "mean")(torch.from_numpy(ids)).numpy()
    uncounted = 0
    for row, pooled in zip(ids, got, strict=True):
        count = sum(1 for i in row if i not in (0, 4))
        uncounted += 4 in row and count > 0
        total = sum((table[i].astype(np.float64) for i in row), np.zeros(3))
        if count:
            np.testing.assert_allclose(pooled, total / count, rtol=1e-6, atol=1e-6)
    assert uncounted or length == 1


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_empty_sequence_is_zero_and_no_nan(pooling: str):
    table = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    embedded = Table(table, pooling)(torch.zeros(2, 3, 4, dtype=torch.int32))
    assert embedded.tolist() == [[[0.0, 0.0]] * 3] * 2


def test_sum_and_mean_of_one_id_are_its_row():
    table = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 5.0]])
    for pooling in ("mean", "sum"):
        assert Table(table, pooling)(torch.tensor([[2, 0, 0]])).tolist() == [[3.0, 5.0]]
    assert Table(table, "mean")(torch.tensor([[2, 1, 0]])).tolist() == [[2.0, 3.5]]
    assert Table(table, "sum")(torch.tensor([[2, 2, 1]])).tolist() == [[7.0, 12.0]]


def test_plain_ids_of_any_rank():
    table = torch.arange(6.0).reshape(3, 2)
    assert Table(table, None)(torch.tensor(2)).tolist() == [4.0, 5.0]
    assert Table(table, None)(torch.zeros(2, 0, dtype=torch.int32)).shape == (2, 0, 2)


def test_id_beyond_the_table_is_an_error():
    with pytest.raises(IndexError):
        Table(torch.zeros(3, 2), None)(torch.tensor([3]))


def test_number_times_column():
    column = Column(torch.tensor([[2.0], [-1.0], [0.0]]))
    assert column(torch.tensor([[1.5, -2.0]])).tolist() == [[[3.0, -1.5, 0.0], [-4.0, 2.0, 0.0]]]


@pytest.mark.parametrize("bias", [True, False])
def test_projection_is_a_linear_map(bias: bool, rng: np.random.Generator):
    weight, offset, x = (
        torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in ((3, 5), (3,), (2, 5))
    )
    got = Projection(weight, offset if bias else None)(x)
    for b, j in np.ndindex(2, 3):
        dot = sum(float(w) * float(v) for w, v in zip(weight[j], x[b], strict=True))
        assert float(got[b, j]) == pytest.approx(dot + bias * float(offset[j]), abs=1e-5)


def test_shared_table_is_one_memory():
    first = FeatureSpec("a", "item", "categorical", 2, vocab_size=4)
    second = FeatureSpec("b", "item", "sequence", 2, vocab_size=4, length=3, shares="a")
    table = torch.randn(4, 2)
    embedding = FeatureEmbedding((first, second), {"embedding.a.table": table})
    memories = {p.data_ptr() for p in embedding.parameters() if p.shape == table.shape}
    assert memories == {table.data_ptr()}


def test_weights_take_no_gradient(rng: np.random.Generator):
    spec = make_spec("sim", features=RICH)
    embedding = FeatureEmbedding(spec.features, draw_state(spec, rng))
    assert not any(p.requires_grad for p in embedding.parameters())

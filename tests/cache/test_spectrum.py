from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckv_export.cache import SpectrumStream, kv_spectrum
from ckv_export.cache.gram import BLOCK, gram
from ckv_export.cache.shared import powers_of_two
from ckv_export.errors import EventsError, InputError


def users_of(seed: int, d: int, lengths: list[int]) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    scale = np.exp(-np.arange(d) / 3)
    return [random.normal(size=(n, d)) * scale + 0.3 for n in lengths]


@settings(max_examples=50)
@given(st.integers(0, 999), st.integers(1, 12), st.lists(st.integers(0, 20), min_size=1))
def test_against_numpy_svd(seed: int, d: int, lengths: list[int]):
    users = users_of(seed, d, lengths)
    stacked = np.concatenate(users)
    squares = np.zeros(d)
    found = np.linalg.svd(stacked, compute_uv=False) ** 2
    squares[: len(found)] = found
    spectrum = kv_spectrum(users)
    # Gram matrices keep half the digits: about 1e-7 of the largest singular value.
    limit = 1e-6 * max(1e-30, float(np.sqrt(squares[0])))
    np.testing.assert_allclose(spectrum.singular_values, np.sqrt(squares), atol=limit)
    assert (spectrum.users, spectrum.events) == (len(lengths), sum(lengths))
    if sum(lengths):
        share = squares / squares.sum()
        np.testing.assert_allclose(spectrum.energy, share, atol=1e-12)
        assert spectrum.cumulative[-1] == pytest.approx(1)
        assert 1 - 1e-9 <= spectrum.effective_rank <= spectrum.effective_rank_rv + 1e-9
        assert spectrum.effective_rank_rv <= d + 1e-9


@settings(max_examples=50)
@given(st.integers(0, 999), st.integers(1, 9), st.lists(st.integers(0, 12), min_size=2))
def test_shared_basis_against_projections(seed: int, d: int, lengths: list[int]):
    users = users_of(seed, d, lengths)
    a, b = np.concatenate(users[::2]), users[1::2]
    shared = kv_spectrum(users).shared
    if not len(a) or not sum(len(u) for u in b):
        assert shared is None
        return
    assert shared is not None
    assert (shared.users_a, shared.users_b) == (len(users[::2]), len(users[1::2]))
    basis = np.linalg.svd(a, full_matrices=False)[2]
    total = sum((u**2).sum() for u in b)
    for r, by_a, by_own, fraction in zip(
        shared.ranks, shared.shared, shared.own, shared.fraction, strict=True
    ):
        projected = sum(((u @ basis[:r].T) ** 2).sum() for u in b)
        own = sum((np.linalg.svd(u, compute_uv=False)[:r] ** 2).sum() for u in b if len(u))
        assert by_a == pytest.approx(projected / total, abs=1e-6)
        assert by_own == pytest.approx(own / total, abs=1e-9)
        assert fraction == pytest.approx(projected / own, abs=1e-6)
        assert by_a <= by_own + 1e-9


def test_users_in_one_subspace_share_everything():
    random = np.random.default_rng(1)
    basis = np.linalg.qr(random.normal(size=(32, 4)))[0]
    spectrum = kv_spectrum([random.normal(size=(50, 4)) @ basis.T for _ in range(10)])
    assert spectrum.shared is not None
    at_4 = spectrum.shared.ranks.index(4)
    assert spectrum.shared.shared[at_4:] == pytest.approx([1] * 4)
    assert spectrum.shared.fraction[at_4:] == pytest.approx([1] * 4)
    assert spectrum.rank_99 <= 4
    assert spectrum.effective_rank <= 4.000001


def test_disjoint_subspaces_share_nothing():
    random = np.random.default_rng(2)
    users = []
    for user in range(8):
        vectors = np.zeros((20, 32))
        vectors[:, 4 * user : 4 * user + 4] = random.normal(size=(20, 4))
        users.append(vectors)
    shared = kv_spectrum(users).shared
    assert shared is not None
    assert max(shared.fraction) < 1e-9
    assert shared.own[shared.ranks.index(4)] == pytest.approx(1)


def test_ranks_for_energy_by_hand():
    vectors = np.diag(np.sqrt([90.0, 5.0, 4.0, 1.0]))
    spectrum = kv_spectrum([vectors], pool_width=3)
    assert (spectrum.rank_90, spectrum.rank_95, spectrum.rank_99) == (1, 2, 3)
    assert spectrum.pool_energy == pytest.approx(0.99)
    shares = np.array([0.9, 0.05, 0.04, 0.01])
    assert spectrum.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    roots = np.sqrt(shares) / np.sqrt(shares).sum()
    assert spectrum.effective_rank_rv == pytest.approx(np.exp(-(roots * np.log(roots)).sum()))


def test_equal_singular_values_have_full_effective_rank():
    spectrum = kv_spectrum([np.eye(6), np.eye(6)])
    assert spectrum.effective_rank == pytest.approx(6)
    assert spectrum.effective_rank_rv == pytest.approx(6)
    assert spectrum.rank_90 == 6


def test_a_zero_matrix_is_defined():
    spectrum = kv_spectrum([np.zeros((3, 4)), np.zeros((2, 4))], pool_width=2)
    assert spectrum.energy == spectrum.cumulative == (0.0,) * 4
    assert (spectrum.rank_90, spectrum.effective_rank, spectrum.effective_rank_rv) == (0, 0, 0)
    assert spectrum.pool_energy == 0
    assert spectrum.shared is None


def test_a_single_user_shares_with_nobody():
    spectrum = kv_spectrum([np.ones((3, 2))])
    assert spectrum.shared is None
    assert spectrum.rank_90 == 1


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (1, 1, 4), (2, 3, 1)])
def test_edge_shapes_of_a_batch(shape: tuple[int, int, int]):
    spectrum = kv_spectrum(np.ones(shape, np.float32))
    assert (spectrum.users, spectrum.d) == (shape[0], shape[2])
    assert spectrum.events == shape[0] * shape[1]
    json.dumps(spectrum.to_dict(), allow_nan=False)


def test_a_batch_with_a_mask_is_the_list_of_its_users():
    random = np.random.default_rng(3)
    batch, mask = random.normal(size=(5, 7, 4)), random.random((5, 7)) < 0.5
    batch[~mask] = np.nan  # padding is never read
    each = [user[keep] for user, keep in zip(batch, mask, strict=True)]
    assert kv_spectrum(batch, mask) == kv_spectrum(iter(each))


def test_a_stream_of_batches_is_one_batch():
    batch = np.random.default_rng(4).normal(size=(6, 5, 4))
    stream = SpectrumStream(4, side="v", layer=2, pool_width=3)
    stream.add_batch(batch[:3])
    stream.add_batch(batch[3:])
    assert stream.result() == kv_spectrum(batch, side="v", layer=2, pool_width=3)


def test_gram_in_blocks_and_halves():
    vectors = np.random.default_rng(5).normal(size=(BLOCK + 3, 2)).astype(np.float16)
    exact = vectors.astype(np.float64).T @ vectors.astype(np.float64)
    np.testing.assert_allclose(gram(vectors), exact)


@pytest.mark.parametrize(
    ("d", "ranks"), [(0, ()), (1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))]
)
def test_powers_of_two(d: int, ranks: tuple[int, ...]):
    assert powers_of_two(d) == ranks


@pytest.mark.parametrize(
    ("users", "words"),
    [
        ([], "no users"),
        ([np.ones((2, 3)), np.ones((2, 4))], r"K of user 1 must have shape \[n, 3\], got \[2, 4\]"),
        ([np.ones(3)], "must have shape"),
        (np.ones((2, 3)), r"shape \[B, S, d\], got \[2, 3\]"),
        ([np.array([[np.nan]])], "must be finite"),
        ([np.array([[np.inf]])], "must be finite"),
    ],
)
def test_bad_events(users: object, words: str):
    with pytest.raises(EventsError, match=words):
        kv_spectrum(users)  # type: ignore[arg-type]


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(EventsError, match=r"shape \[2, 3\], got \[2, 2\]"):
        kv_spectrum(np.ones((2, 3, 1)), np.ones((2, 2), bool))


def test_pool_width_beyond_the_vector_is_refused():
    with pytest.raises(InputError, match=r"pool_width must lie in \[0, 3\], got 4"):
        SpectrumStream(3, pool_width=4)

"""What each search selects, against brute force on tiny whole numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from ckv_testing.draw import halves, make_spec

from ckv_export.contract import AttentionSpec, DnnSpec, FeatureSpec, ModelSpec
from ckv_export.model.parameters import expected_shapes
from ckv_export.model.registry import build_model

pytestmark = pytest.mark.usefixtures("one_thread")

D = 4
FEATURES = (FeatureSpec("x", "item", "vector", D, length=D),)
EYE = torch.eye(D)


def built(kind: str, heads: int = 1, topk: int = 2, flag: bool = False, **tensors: torch.Tensor):
    """A model whose event is its embedding; `tensors` replace zeros ("q" is long.q.weight)."""
    spec = ModelSpec(
        kind,
        FEATURES,
        AttentionSpec(D, heads, 1, 1, 2, 2),
        DnnSpec((), (), False),
        max_len=9,
        window=3,
        options=make_spec(kind, topk=topk, flag=flag).options,
    )
    tensors |= {"o": EYE}
    state = {
        name: tensors.get(name.split(".")[1], torch.zeros([max(n, 1) for n in shape]))
        for name, shape in expected_shapes(spec).items()
    }
    model = build_model(spec, state)
    return model, model.long_output(state)


def branch(built_model, events: np.ndarray, mask: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The long branch with all that is left over applied to it: [B, C, D]."""
    model, left_over = built_model
    x, t = torch.from_numpy(events), torch.from_numpy(target)
    found = model.long_branch(x, model.event_key(x), torch.from_numpy(mask), t)
    return (found if left_over is None else found @ left_over.to(found.dtype).T).numpy()


def lowest_first(scores: list[float], count: int) -> list[int]:
    """By trying all sets: the one with the largest scores, the lowest positions at a tie."""
    count = min(count, len(scores))
    sets = itertools.combinations(range(len(scores)), count)
    return list(
        max(sets, key=lambda s: (sorted((scores[t] for t in s), reverse=True), *(-t for t in s)))
    )


def drawn(rng: np.random.Generator, events: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Few distinct events, some masked; user 0 has none masked, user 1 all."""
    x = halves(rng, (6, events, D), 1)
    mask = rng.random((6, events)) < 0.7
    mask[0], mask[1] = True, False
    return x, mask, halves(rng, (6, 3, D), 1)


@pytest.mark.parametrize("events", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("topk", [1, 2, 5])
def test_eta_takes_the_nearest_codes_lowest_position_first(
    events: int, topk: int, rng: np.random.Generator
):
    """With q = 0 the attention is a plain mean of what was selected, which so shows."""
    rotations = halves(rng, (D, 5), 2)
    model = built("eta", topk=topk, rotations=torch.from_numpy(rotations), v=EYE)
    x, mask, target = drawn(rng, events)
    got = branch(model, x, mask, target)
    for b, c in np.ndindex(6, 3):
        wanted = target[b, c] @ rotations > 0
        distances = [
            int(((e @ rotations > 0) != wanted).sum()) if real else 6
            for e, real in zip(x[b], mask[b], strict=True)
        ]
        at = lowest_first([-d for d in distances], topk)
        np.testing.assert_allclose(got[b, c], mean_of_real(x[b], mask[b], at), atol=1e-6)


def mean_of_real(x: np.ndarray, mask: np.ndarray, at: list[int]) -> np.ndarray:
    """Mean over the selected events that are real; over all selected where none is."""
    kept = [t for t in at if mask[t]] or at
    return x[kept].mean(0) if kept else np.zeros(D)


@pytest.mark.parametrize("events", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("topk", [1, 2, 5])
def test_sim_lets_padding_outrank_negative_scores(events: int, topk: int, rng: np.random.Generator):
    model = built("sim", topk=topk, gsu_target=EYE, gsu_event=EYE, v=EYE)
    x, mask, target = drawn(rng, events)
    got = branch(model, x, mask, target)
    for b, c in np.ndindex(6, 3):
        relevance = [float(e @ target[b, c]) * real for e, real in zip(x[b], mask[b], strict=True)]
        at = lowest_first(relevance, topk)
        np.testing.assert_allclose(got[b, c], mean_of_real(x[b], mask[b], at), atol=1e-6)


def test_sim_padding_takes_a_place_by_hand():
    """Relevances -1, 0 (padding), 1 with k = 2: padding is selected, the event with -1 is not."""
    model = built("sim", topk=2, gsu_target=EYE, gsu_event=EYE, v=EYE)
    x = np.array([[[-1, 0, 0, 0], [5, 5, 5, 5], [1, 0, 0, 0]]], np.float32)
    mask = np.array([[True, False, True]])
    target = np.array([[[1, 0, 0, 0]]], np.float32)
    assert branch(model, x, mask, target).tolist() == [[[1.0, 0.0, 0.0, 0.0]]]


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("events", [0, 1, 3, 6])
@pytest.mark.parametrize("topk", [1, 2, 5])
def test_twin_each_head_has_its_own_top_k(
    events: int, topk: int, heads: int, rng: np.random.Generator
):
    """One column a head: its scores are products of two numbers, and ties are everywhere."""
    model = built("twin", heads, topk, q=EYE, k=EYE, v=torch.diag(torch.tensor([1.0, 2, 4, 8])))
    x, mask, target = drawn(rng, events)
    got = branch(model, x, mask, target)
    width = D // heads
    for b, c, h in np.ndindex(6, 3, heads):
        part = slice(h * width, (h + 1) * width)
        logits = [
            float(target[b, c, part] @ e[part]) / math.sqrt(width) if real else -1e9
            for e, real in zip(x[b], mask[b], strict=True)
        ]
        at = lowest_first(logits, topk)
        powers = [math.exp(logits[t] - max(logits)) for t in at]
        expected = sum(
            (p * x[b, t, part] for p, t in zip(powers, at, strict=True)), np.zeros(width)
        ) / (sum(powers) or 1.0)
        scale = np.array([1.0, 2, 4, 8])[part]
        np.testing.assert_allclose(got[b, c, part], expected * scale, atol=3e-6)


@pytest.mark.parametrize("l2_norm", [True, False])
@pytest.mark.parametrize("events", [0, 1, 2, 7])
@pytest.mark.parametrize("bits", [1, 3, 6, 7])
def test_sdim_sums_the_targets_bucket_of_each_hash(
    bits: int, events: int, l2_norm: bool, rng: np.random.Generator
):
    """Up to 64 buckets, each summed once, and more."""
    hashes = 4
    rotations = halves(rng, (D, hashes, bits), 2)
    model = built("sdim", flag=l2_norm, rotations=torch.from_numpy(rotations))
    assert model[0].sums_buckets == (bits < 7)
    x, mask, target = drawn(rng, events)
    got = branch(model, x, mask, target)

    def bucket(e: np.ndarray, h: int) -> int:
        return sum(2**i for i in range(bits) if e @ rotations[:, h, i] > 0)

    for b, c in np.ndindex(6, 3):
        total = np.zeros(D)
        for h in range(hashes):
            wanted = bucket(target[b, c], h)
            found = np.zeros(D)
            for t in range(events):
                if mask[b, t] and bucket(x[b, t], h) == wanted:
                    found += x[b, t]
            norm = math.sqrt((found**2).sum())
            total += found / norm if l2_norm and norm else found
        np.testing.assert_allclose(got[b, c], total / hashes, atol=1e-6)


def test_sdim_by_hand():
    """One hash of two bits: the signs of the first two columns are the bucket."""
    rotations = torch.zeros(D, 1, 2)
    rotations[0, 0, 0] = rotations[1, 0, 1] = 1.0
    x = np.array([[[1, -1, 0, 0], [2, -1, 2, 0], [1, 1, 9, 9], [-1, -1, 9, 9], [1, 0, 1, 0]]])
    mask = np.ones((1, 5), bool)
    target = np.array([[[3, -3, 0, 0]]])
    arrays = (x.astype(np.float32), mask, target.astype(np.float32))
    plain = branch(built("sdim", rotations=rotations), *arrays)
    assert plain.tolist() == [[[4.0, -2.0, 3.0, 0.0]]]
    scaled = branch(built("sdim", flag=True, rotations=rotations), *arrays)
    np.testing.assert_allclose(scaled, plain / math.sqrt(16 + 4 + 9), rtol=1e-6)


def test_eta_scales_only_if_told(rng: np.random.Generator):
    rotations = torch.from_numpy(halves(rng, (D, 5), 2))
    x, mask, target = drawn(rng, 6)
    options = {"topk": 5, "rotations": rotations, "q": EYE, "k": EYE, "v": EYE}
    scaled, plain = (
        branch(built("eta", flag=f, **options), x, mask, target) for f in (True, False)
    )
    # The same as halving the query, since sqrt(4) = 2.
    halved = branch(built("eta", **options | {"q": EYE / 2}), x, mask, target)
    np.testing.assert_allclose(scaled, halved, atol=1e-6)
    assert not np.allclose(scaled, plain, atol=1e-3)

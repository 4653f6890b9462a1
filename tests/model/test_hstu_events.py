"""Which events HSTU lets count: a candidate sees itself and no other, masked ones move nothing."""

from __future__ import annotations

import numpy as np
import pytest
from ckv_testing.hstu_models import CLOSE, Split, assert_same, draw, make_spec, with_logits

from ckv_export.contract import ModelSpec
from ckv_export.parity.inputs import CaseSize, generate_case
from ckv_export.runtimes.base import Arrays

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_candidate_sees_itself_and_no_other(rng: np.random.Generator):
    spec = with_logits(make_spec("three layers, four heads, every feature, times"))
    split = Split(spec, draw(spec, rng))
    inputs = generate_case(spec, CaseSize("many", 2, 9, 2, 20), rng).inputs
    together = split.outputs(inputs)["score"]
    assert np.ptp(together, axis=1).min() > 1e-3, "all candidates score alike: this proves nothing"
    shown = [name for name in inputs if name.startswith("candidate_")]
    order = rng.permutation(20)
    shuffled = split.outputs(inputs | {name: inputs[name][:, order] for name in shown})["score"]
    np.testing.assert_allclose(shuffled, together[:, order], rtol=0, atol=CLOSE)
    for c in range(20):
        alone = {name: inputs[name][:, c : c + 1] for name in shown}
        score = split.outputs(inputs | alone)["score"]
        np.testing.assert_allclose(score, together[:, c : c + 1], rtol=0, atol=CLOSE)


# -- masked events


def insert_masked(
    spec: ModelSpec, inputs: Arrays, group: str, places: list[int], rng: np.random.Generator
) -> Arrays:
    """`inputs` with masked events, whose features are anything, put in front of `places`."""
    count = len(places)
    junk = generate_case(spec, CaseSize("junk", 2, count, 0, 1, "full"), rng).inputs
    junk["history_mask"] = np.zeros((2, count), bool)
    changed = {
        f"{group}_{n}": np.insert(inputs[f"{group}_{n}"], places, junk[f"history_{n}"], axis=1)
        for n in [*(f.name for f in spec.item_features), "mask"]
    }
    return inputs | changed


def left_out(outputs: Arrays, kept: np.ndarray) -> Arrays:
    return {n: a if n == "score" else a[:, :, kept] for n, a in outputs.items()}


@pytest.mark.parametrize("variant", ["two layers, times", "K not shared, biases, times"])
@pytest.mark.parametrize(
    ("group", "places"),
    [
        ("history", [0] * 5),
        ("history", [0, 3, 3, 4, 8]),
        ("history", [8]),
        ("append", [0, 0]),
        ("append", [1, 3]),
    ],
)
def test_masked_events_anywhere_move_nothing(
    variant: str, group: str, places: list[int], rng: np.random.Generator
):
    spec = make_spec(variant)
    split = Split(spec, draw(spec, rng))
    inputs = generate_case(spec, CaseSize("real", 2, 8, 3, 4, "holes"), rng).inputs
    base = split.outputs(inputs)
    padded = split.outputs(insert_masked(spec, inputs, group, places, rng))
    start = 8 if group == "append" else 0
    old = np.insert(np.ones(11, bool), [start + place for place in places], False)
    assert_same(left_out(padded, old), base)


def test_what_a_masked_event_is_does_not_matter_but_to_its_own_entries(rng: np.random.Generator):
    spec = make_spec("three layers, four heads, every feature, times")
    split = Split(spec, draw(spec, rng))
    inputs = generate_case(spec, CaseSize("holes", 3, 9, 3, 2, "holes"), rng).inputs
    other = generate_case(spec, CaseSize("other", 3, 9, 3, 2, "full"), rng).inputs
    changed = dict(inputs)
    for group in ("history", "append"):
        mask = inputs[f"{group}_mask"]
        for f in spec.item_features:
            ours, theirs = (a[f"{group}_{f.name}"] for a in (inputs, other))
            inner = mask.reshape(*mask.shape, *[1] * (ours.ndim - 2))
            changed[f"{group}_{f.name}"] = np.where(inner, ours, theirs)
    mask = np.concatenate([inputs["history_mask"], inputs["append_mask"]], axis=1)
    base, moved = split.outputs(inputs), split.outputs(changed)
    np.testing.assert_allclose(moved["score"], base["score"], rtol=0, atol=CLOSE)
    for name in ("k_user", "v_user"):
        ours, theirs = (np.moveaxis(a[name], 1, 2) for a in (base, moved))
        np.testing.assert_allclose(theirs[mask], ours[mask], rtol=0, atol=CLOSE)
        assert not np.allclose(theirs[~mask], ours[~mask], rtol=0, atol=1e-3)


def test_unmasking_an_event_moves_the_scores(rng: np.random.Generator):
    """What the tests above rest on: these events would count if they were real."""
    spec = with_logits(make_spec("two layers, times"))
    split = Split(spec, draw(spec, rng))
    inputs = generate_case(spec, CaseSize("full", 2, 8, 3, 4, "full"), rng).inputs
    base = split.outputs(inputs)["score"]
    for group, size in (("history", 8), ("append", 3)):
        for t in range(size):
            mask = np.ones((2, size), bool)
            mask[:, t] = False
            score = split.outputs(inputs | {f"{group}_mask": mask})["score"]
            assert np.abs(score - base).max() > 1e-6, (group, t)

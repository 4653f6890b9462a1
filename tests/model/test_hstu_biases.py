"""HSTU's biases by distance in events and in time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ckv_testing.hstu_models import CLOSE, Split, assert_same, draw, make_spec, with_logits

from ckv_export.model.links import log2_bucket
from ckv_export.parity.inputs import CaseSize, generate_case

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("table", ["position_bias", "time_bias"])
def test_distances_beyond_a_table_take_its_last_entry(table: str, rng: np.random.Generator):
    spec = with_logits(make_spec("two layers, times"))
    state = draw(spec, rng, free=4)
    inputs = generate_case(spec, CaseSize("long", 2, 10, 2, 3, "full"), rng).inputs
    base = Split(spec, state).outputs(inputs)
    names = [name for name in state if name.endswith(table)]
    assert len(names) == spec.num_layers
    longer = state | {n: torch.cat([state[n], state[n][-1:].expand(40)]) for n in names}
    assert_same(Split(spec, longer).outputs(inputs), base)
    other = state | {n: torch.cat([state[n], -state[n][-1:].expand(40)]) for n in names}
    assert np.abs(Split(spec, other).outputs(inputs)["score"] - base["score"]).max() > 1e-6


@pytest.mark.parametrize("table", ["position_bias", "time_bias"])
def test_a_constant_on_a_table_is_one_on_all_logits(table: str, rng: np.random.Generator):
    """Both biases go into the same logits, whatever the distance: only their sum counts."""
    spec = with_logits(make_spec("two layers, times"))
    state = draw(spec, rng)
    other = {"position_bias": "time_bias", "time_bias": "position_bias"}[table]
    inputs = generate_case(spec, CaseSize("holes", 3, 9, 2, 3, "holes"), rng).inputs
    moved = {n: t + 0.5 for n, t in state.items() if n.endswith(table)}
    back = {n: t - 0.5 for n, t in state.items() if n.endswith(other)}
    base = Split(spec, state).outputs(inputs)
    assert_same(Split(spec, state | moved | back).outputs(inputs), base)
    once = Split(spec, state | moved).outputs(inputs)
    assert np.abs(once["score"] - base["score"]).max() > 1e-6


def bucket_of(seconds: int) -> int:
    return max(seconds, 1).bit_length() - 1


def test_log2_bucket_at_every_power_of_two():
    powers = [2**k for k in range(31)]
    near = [p + d for p in powers for d in (-1, 0, 1)]
    seconds = [0, -1, -2, -(2**30), -(2**31), 2**31 - 1, *near]
    buckets = log2_bucket(torch.tensor(seconds, dtype=torch.int32))
    assert buckets.dtype == torch.int32
    assert buckets.tolist() == [bucket_of(s) for s in seconds]
    assert [bucket_of(s) for s in (0, 1, 2, 3, 4, 2**30 - 1, 2**30)] == [0, 0, 1, 1, 2, 29, 30]


def test_log2_bucket_of_random_numbers(rng: np.random.Generator):
    seconds = rng.integers(-(2**31), 2**31, 3000) >> rng.integers(0, 32, 3000)
    buckets = log2_bucket(torch.from_numpy(seconds.astype(np.int32)).reshape(30, 100))
    assert buckets.flatten().tolist() == [bucket_of(int(s)) for s in seconds]


def test_an_event_later_than_the_candidate_is_in_the_first_bucket(rng: np.random.Generator):
    """Clocks differ: what seems to come from the future happened just now."""
    spec = with_logits(make_spec("two layers, times"))
    split = Split(spec, draw(spec, rng, free=31))
    inputs = generate_case(spec, CaseSize("full", 2, 6, 0, 3, "full"), rng).inputs
    now = {"candidate_time": np.repeat(inputs["history_time"][:, -1:], 3, axis=1)}
    # All events in the first bucket either way: at the same second, or after the candidate.
    same = now | {"history_time": np.repeat(inputs["history_time"][:, -1:], 6, axis=1)}
    earlier = same | {"candidate_time": same["candidate_time"] - 1000}
    later = same | {"candidate_time": same["candidate_time"] + 1000}
    base = split.outputs(inputs | same)["score"]
    got = split.outputs(inputs | earlier)["score"]
    np.testing.assert_allclose(got, base, rtol=0, atol=CLOSE)
    assert np.abs(split.outputs(inputs | later)["score"] - base).max() > 1e-6


def test_scores_depend_on_the_time_between_and_not_on_the_date(rng: np.random.Generator):
    spec = make_spec("two layers, times")
    split = Split(spec, draw(spec, rng, free=31))
    inputs = generate_case(spec, CaseSize("full", 2, 9, 2, 3, "full"), rng).inputs
    later = {n: a + 1_600_000_000 for n, a in inputs.items() if n.endswith("_time")}
    assert later["candidate_time"].dtype == np.int32
    assert_same(split.outputs(inputs | later), split.outputs(inputs))

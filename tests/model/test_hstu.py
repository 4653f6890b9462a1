"""HSTU against loops in float64, and the rules that make its cache a cache."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from ckv_testing.draw import DNN, ODD_DNN, PLAIN, RICH
from ckv_testing.slow import Floats, Slow, silu
from torch import Tensor

from ckv_export.contract import AttentionSpec, CacheSpec, DnnSpec, FeatureSpec, ModelSpec
from ckv_export.errors import SpecError
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.hstu import log2_bucket
from ckv_export.model.parameters import expected_shapes
from ckv_export.model.registry import build_model, build_reference
from ckv_export.parity.inputs import CaseSize, Fill, generate_case
from ckv_export.runtimes.base import Arrays

pytestmark = pytest.mark.usefixtures("one_thread")

# All of it runs in float64, so that rounding neither flips a row nor hides what is wrong.
CLOSE = 1e-9

TIME = FeatureSpec("time", "item", "timestamp", 0)
ONE_ID = (FeatureSpec("item_id", "item", "categorical", 5, vocab_size=40),)

VARIANTS: Mapping[str, dict[str, Any]] = {
    "one layer, one head, ids alone": {
        "num_layers": 1,
        "features": ONE_ID,
        "attention": AttentionSpec(4, 1, 1, 2, 5, 3),
    },
    "two layers": {},
    "two layers, times": {"features": (*PLAIN, TIME)},
    "three layers, four heads, every feature, times": {
        "num_layers": 3,
        "features": (TIME, *RICH),
        "attention": AttentionSpec(8, 4, 2, 3, 6, 7),
        "dnn": ODD_DNN,
    },
    "K not shared, biases, times": {
        "features": (PLAIN[0], TIME, PLAIN[1]),
        "attention": AttentionSpec(6, 2, 6, 1, 0, 4, user_bias=True, router_bias=True),
    },
    "V not shared, neither silu nor scale": {
        "attention": AttentionSpec(6, 3, 2, 6, 4, 0, use_silu=False, use_scale=False),
        "dnn": DnnSpec((), (), batch_norm=True, sigmoid=False),
    },
}


def make_spec(variant: str) -> ModelSpec:
    fields: dict[str, Any] = {
        "features": PLAIN,
        "attention": AttentionSpec(8, 2, 2, 1, 6, 7),
        "dnn": DNN,
        "max_len": 40,
        "num_layers": 2,
    }
    return ModelSpec("hstu", **fields | VARIANTS[variant])


def draw(spec: ModelSpec, rng: np.random.Generator, free: int = 6) -> dict[str, Tensor]:
    """Every tensor Gaussian, in float64; tables of biases with `free` entries."""
    state = {}
    for name, shape in expected_shapes(spec).items():
        sizes = [free if size == -1 else size for size in shape]
        if name.endswith(".activation.weight"):
            sizes = [1]
        drawn = torch.from_numpy(rng.standard_normal(sizes))
        state[name] = drawn.abs() + 0.5 if name.endswith(".var") else 0.7 * drawn
    return state


def with_logits(spec: ModelSpec) -> ModelSpec:
    """The same model without a sigmoid, which may leave nothing to see of a difference."""
    return dataclasses.replace(spec, dnn=dataclasses.replace(spec.dnn, sigmoid=False))


@dataclass(frozen=True)
class Event:
    embedding: Floats
    real: bool
    time: int | None


class SlowHstu(Slow):
    """ "HSTU in full" of SPEC section 2, one sequence, event, layer, pair and head at a time."""

    def norm(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean()
        rate = 1.0 / math.sqrt(float((centred**2).mean()) + 1e-6)
        return centred * rate * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def row(self, z: Floats, layer: int, side: str) -> int:
        logits = self.linear(z, f"attention.{layer}.{side}.router")
        return min(range(len(logits)), key=lambda j: (-logits[j], j))

    def part(self, z: Floats, layer: int, side: str) -> Floats:
        """The user part as it is cached."""
        part = self.activate(self.linear(z, f"attention.{layer}.{side}"))
        return self.activate(part) if self.spec.attention.shared(side) else part

    def whole(self, z: Floats, layer: int, side: str) -> Floats:
        if not self.spec.attention.shared(side):
            return self.part(z, layer, side)
        pool = self.state[f"attention.{layer}.{side}.pool"]
        row = self.activate(pool[self.row(z, layer, side)])
        return np.concatenate([row, self.part(z, layer, side)])

    def bias(self, layer: int, distance: int, later: Event, earlier: Event) -> float:
        positions = self.state[f"attention.{layer}.position_bias"]
        bias = float(positions[min(distance, len(positions) - 1)])
        if later.time is None or earlier.time is None:
            return bias
        times = self.state[f"attention.{layer}.time_bias"]
        bucket = 0
        while 2 ** (bucket + 1) <= later.time - earlier.time:
            bucket += 1
        return bias + float(times[min(bucket, len(times) - 1)])

    def layer(self, x: list[Floats], events: list[Event], layer: int) -> list[Floats]:
        name = f"attention.{layer}"
        z = [self.norm(one, f"{name}.norm") for one in x]
        keys = [self.whole(one, layer, "k") for one in z]
        values = [self.whole(one, layer, "v") for one in z]
        seen = np.cumsum([event.real for event in events])
        width = self.spec.attention.d // self.spec.attention.num_heads
        scale = math.sqrt(width) if self.spec.attention.use_scale else 1.0
        out = []
        for t in range(len(x)):
            gate = silu(self.linear(z[t], f"{name}.u"))
            query = silu(self.linear(z[t], f"{name}.q"))
            attended = np.zeros(self.spec.attention.d)
            for s in range(t + 1):
                if not events[s].real:
                    continue
                bias = self.bias(layer, int(seen[t] - seen[s]), events[t], events[s])
                for head in self.heads():
                    logit = float(query[head] @ keys[s][head]) / scale + bias
                    attended[head] += silu(np.float64(logit)) / seen[t] * values[s][head]
            gated = self.norm(attended, f"{name}.output_norm") * gate
            out.append(x[t] + self.linear(gated, f"{name}.o"))
        return out

    def states(self, events: list[Event]) -> list[list[Floats]]:
        """What goes into each layer, and what comes out of the last."""
        states = [[self.linear(event.embedding, "input") for event in events]]
        for layer in range(self.spec.num_layers):
            states.append(self.layer(states[-1], events, layer))
        return states

    def sequence(self, inputs: Arrays, groups: tuple[str, ...], b: int) -> list[Event]:
        features, stamp = self.spec.embedded_item_features, self.spec.timestamp
        events = []
        for group in groups:
            for t in range(inputs[f"{group}_{features[0].name}"].shape[1]):
                values = {f.name: inputs[f"{group}_{f.name}"][b, t] for f in features}
                real = group == "candidate" or bool(inputs[f"{group}_mask"][b, t])
                time = None if stamp is None else int(inputs[f"{group}_{stamp.name}"][b, t])
                events.append(Event(self.embed(features, values), real, time))
        return events

    def user_scores(self, inputs: Arrays, b: int) -> list[float]:
        """Each candidate by itself behind history and appended events."""
        events = self.sequence(inputs, ("history", "append"), b)
        scores = []
        for candidate in self.sequence(inputs, ("candidate",), b):
            state = self.states([*events, candidate])[-1][-1]
            parts = [self.user(inputs, b), candidate.embedding, state]
            scores.append(self.dnn(np.concatenate(parts)))
        return scores

    def outputs(self, inputs: Arrays) -> Arrays:
        """``score`` [B, C]; ``k_index`` [B, L, S + T], ``k_user`` [B, L, S + T, d_u], ..."""
        rows: dict[str, list[Any]] = {"score": []}
        for b in range(len(inputs["history_mask"])):
            rows["score"].append(self.user_scores(inputs, b))
            states = self.states(self.sequence(inputs, ("history", "append"), b))
            for suffix, _, width in CacheSpec.of(self.spec).tensors:
                compute = self.row if width is None else self.part
                entries = [
                    [compute(self.norm(x, f"attention.{i}.norm"), i, suffix[0]) for x in layer]
                    for i, layer in enumerate(states[:-1])
                ]
                inner = () if width is None else (width,)
                shape = (self.spec.num_layers, len(states[0]), *inner)
                rows.setdefault(suffix, []).append(np.reshape(entries, shape))
        return {name: np.array(values) for name, values in rows.items()}


class Split:
    """The two graphs of a drawn model, fed in float64."""

    def __init__(self, spec: ModelSpec, state: Mapping[str, Tensor]) -> None:
        self.spec = spec
        model = build_model(spec, state)
        self.prefill, self.decode = PrefillGraph(model), DecodeGraph(model)

    def outputs(self, inputs: Arrays) -> Arrays:
        """Prefill all of the history, decode: named and shaped as `SlowHstu.outputs`."""
        users = len(inputs["history_mask"])
        past = {
            t.name: np.zeros(t.shape({"B": users, "K": 0}), t.dtype)
            for t in self.prefill.io.inputs
            if t.name.startswith("past_")
        }
        events = {
            name.replace("history_", "event_", 1): a
            for name, a in inputs.items()
            if name.startswith("history_")
        }
        cache = run(self.prefill, past | events)
        new = run(self.decode, inputs | cache)
        joined = {
            suffix: np.concatenate([cache[f"cache_{suffix}"], new[f"append_{suffix}"]], axis=2)
            for suffix, _, _ in CacheSpec.of(self.spec).tensors
        }
        return joined | {"score": new["score"]}


def run(graph: PrefillGraph | DecodeGraph, feeds: Arrays) -> Arrays:
    given = []
    for tensor in graph.io.inputs:
        array = torch.from_numpy(np.ascontiguousarray(feeds[tensor.name]))
        given.append(array.double() if tensor.dtype == "float32" else array)
    with torch.inference_mode():
        outputs = graph(*given)
    return {t.name: o.numpy() for t, o in zip(graph.io.outputs, outputs, strict=True)}


def reference_outputs(spec: ModelSpec, state: Mapping[str, Tensor], inputs: Arrays) -> Arrays:
    """Of the reference: named and shaped as `SlowHstu.outputs`."""
    given = {name: torch.from_numpy(a) for name, a in inputs.items()}
    names = [*(f.name for f in spec.item_features), "mask"]
    history = {n: torch.cat([given[f"{g}_{n}"] for g in ("history", "append")], 1) for n in names}
    mask = history.pop("mask")
    asked = [
        {n.removeprefix(p): t for n, t in given.items() if n.startswith(p)}
        for p in ("candidate_", "user_")
    ]
    reference = build_reference(spec, state)
    layers = reference.cache(history, mask)
    found = {"score": reference.score(history, mask, *asked).numpy()}
    for suffix, _, width in CacheSpec.of(spec).tensors:
        kind, side = ("index" if width is None else "user"), suffix[0]
        found[suffix] = torch.stack([getattr(e, kind)[side] for e in layers], dim=1).numpy()
    return found


def assert_same(got: Arrays, expected: Arrays) -> None:
    """Row numbers exactly, numbers to what float64 leaves."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        bound = 0.0 if name.endswith("_index") else CLOSE
        np.testing.assert_allclose(got[name], array, rtol=bound, atol=bound, err_msg=name)


def requests(spec: ModelSpec, rng: np.random.Generator) -> list[Arrays]:
    """Every kind of history and mask; ragged, with holes and with nothing real among them."""
    sizes: list[tuple[int, int, int, int, Fill]] = [
        (2, 0, 0, 1, "full"),
        (2, 0, 1, 3, "full"),
        (1, 1, 0, 1, "full"),
        (2, 1, 2, 2, "ragged"),
        (1, 13, 0, 7, "full"),
        (3, 9, 3, 2, "ragged"),
        (3, 8, 4, 2, "holes"),
        (2, 4, 2, 2, "masked"),
        (2, 6, 1, 2, "repeats"),
    ]
    return [generate_case(spec, CaseSize(s[4], *s), rng).inputs for s in sizes]


@pytest.mark.parametrize("variant", VARIANTS)
def test_split_model_and_reference_compute_what_the_loops_do(
    variant: str, rng: np.random.Generator
):
    spec = make_spec(variant)
    # Tables of biases shorter than the histories, so that distances run beyond them.
    state = draw(spec, rng, free=int(rng.integers(1, 12)))
    slow, split = SlowHstu(spec, state), Split(spec, state)
    for inputs in requests(spec, rng):
        expected = slow.outputs(inputs)
        assert_same(split.outputs(inputs), expected)
        assert_same(reference_outputs(spec, state, inputs), expected)


# -- candidates


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


# -- biases


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


# -- refusals


def test_a_window_is_refused(rng: np.random.Generator):
    spec = dataclasses.replace(make_spec("two layers"), window=5)
    with pytest.raises(SpecError, match="hstu attends to the whole history, got window 5"):
        expected_shapes(spec)


def test_options_are_refused():
    spec = dataclasses.replace(make_spec("two layers"), options={"topk": 3})
    with pytest.raises(SpecError, match="hstu: unknown option 'topk'"):
        expected_shapes(spec)

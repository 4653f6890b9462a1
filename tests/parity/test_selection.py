"""How close a search came to selecting other events, against loops in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ckv_testing.draw import draw_cases, draw_state, make_spec
from ckv_testing.slow import Slow, best

from ckv_export.contract import AttentionSpec
from ckv_export.model.reference import Reference
from ckv_export.model.registry import build_reference
from ckv_export.parity.expected import record
from ckv_export.parity.inputs import Case, CaseSize, generate_case
from ckv_export.parity.selection import gap, selection_margin
from ckv_export.training import demo_spec, initial_state

pytestmark = pytest.mark.usefixtures("one_thread")


def slow_gap(scores: list[float], topk: int) -> float:
    """Over all pairs of a selected and another event whose scores differ."""
    selected = best(scores, topk)
    others = [t for t in range(len(scores)) if t not in selected]
    pairs = itertools.product(selected, others)
    differences = [scores[s] - scores[o] for s, o in pairs if scores[s] != scores[o]]
    return min(differences, default=float("inf"))


@pytest.mark.parametrize("topk", [1, 2, 3, 6, 7])
def test_gap_is_that_of_all_pairs(topk: int, rng: np.random.Generator):
    """Of few values, so that ties straddle the boundary."""
    scores = rng.integers(0, 4, (50, 6)).astype(np.float64)
    assert gap(scores, topk).tolist() == [slow_gap(list(row), topk) for row in scores]
    assert gap(scores[:, :0], topk).tolist() == [np.inf] * 50


def gaussian(spec, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Without the exact numbers of drawn models: no ties, no zeros."""
    state = draw_state(spec, rng)
    for name, tensor in state.items():
        if name.endswith(".table") or name.startswith("long."):
            drawn = rng.standard_normal(tuple(tensor.shape)).astype(np.float32)
            state[name] = torch.from_numpy(drawn)
    return state


def slow_margin(slow: Slow, events, mask, target) -> float:
    """Of one candidate of one user."""
    spec = slow.spec
    if spec.kind in ("sim", "twin"):
        names = ("gsu_target", "gsu_event") if spec.kind == "sim" else ("q", "k")
        heads = 1 if spec.kind == "sim" else spec.attention.num_heads
        asked = np.split(slow.linear(target, f"long.{names[0]}"), heads)
        found = [np.split(slow.linear(e, f"long.{names[1]}"), heads) for e in events]
        margins = []
        for h in range(heads):
            terms = [asked[h] * f[h] for f in found]
            masked = 0.0 if spec.kind == "sim" else -1e9
            scores = [
                float(t.sum()) if m else masked for t, m in zip(terms, mask, strict=True)
            ]  # fmt: skip
            scale = max((np.abs(t).sum() for t, m in zip(terms, mask, strict=True) if m), default=0)
            if scale > 0:
                margins.append(slow_gap(scores, int(spec.options["topk"])) / scale)
        return min(margins, default=np.inf)
    if len(events) <= int(spec.options.get("topk", 0)):
        return np.inf
    rotations = slow.state["long.rotations"].reshape(len(target), -1)
    near = [target, *(e for e, m in zip(events, mask, strict=True) if m)]
    return min(
        abs(float(x @ r)) / float(np.abs(x) @ np.abs(r)) for x in near for r in rotations.T if x @ r
    )


@pytest.mark.parametrize("kind", ["sim", "twin", "eta", "sdim"])
def test_recorded_margins_are_those_of_loops(kind: str, seed: int, rng: np.random.Generator):
    spec = make_spec(kind)
    state = gaussian(spec, rng)
    slow, finite = Slow(spec, state), 0
    for case in record(Reference(spec, state), draw_cases(spec, seed)):
        assert case.selection is not None
        assert case.selection.shape == case.outputs["score"].shape
        inputs = case.case.inputs
        for b, row in enumerate(case.selection):
            events, mask = slow.history(inputs, b)
            for c, margin in enumerate(row):
                values = {f.name: inputs[f"candidate_{f.name}"][b, c] for f in spec.item_features}
                target = slow.embed(spec.item_features, values)
                wanted = slow_margin(slow, events, mask, target)
                assert margin == pytest.approx(wanted, rel=1e-4, abs=1e-9)
                finite += np.isfinite(wanted)
    assert finite > 20


@pytest.mark.parametrize("kind", ["sim", "twin"])
def test_one_item_done_often_ties_exactly(kind: str, rng: np.random.Generator):
    """Though a matrix product may round the same sum otherwise in another row or column."""
    spec = make_spec(kind, attention=AttentionSpec(16, 1, 2, 1, 10, 13))
    reference = Reference(spec, gaussian(spec, rng))
    for events, candidates in itertools.product((7, 50, 1001), (1, 2, 5, 100)):
        history = {f.name: torch.ones(1, events, dtype=torch.int32) for f in spec.item_features}
        asked = {
            f.name: torch.from_numpy(rng.integers(1, f.vocab_size, (1, candidates)))
            for f in spec.item_features
        }
        mask = torch.ones(1, events, dtype=torch.bool)
        margin = selection_margin(reference, history, mask, asked)
        assert margin.tolist() == [[float("inf")] * candidates], (events, candidates)


def test_exact_ties_are_no_near_ties(seed: int, rng: np.random.Generator):
    """Which event wins them is part of the model: drawn models are full of them."""
    spec = make_spec("eta")
    cases = record(Reference(spec, draw_state(spec, rng)), draw_cases(spec, seed))
    assert min(case.selection.min() for case in cases) > 1e-3


def test_candidate_of_hstu_is_as_near_as_its_own_router(seed: int):
    """Put behind the history as one more event, it has the margins that are recorded of events."""
    spec = demo_spec("hstu")
    reference = build_reference(spec, initial_state(spec, 1))
    size = CaseSize("x", 2, 5, 2, 3)
    case = generate_case(spec, size, np.random.default_rng(seed))
    (told,) = record(reference, [case])
    for c in range(size.candidates):
        inputs = dict(case.inputs)
        for feature in spec.item_features:
            shown = case.inputs[f"candidate_{feature.name}"][:, c : c + 1]
            appended = case.inputs[f"append_{feature.name}"]
            inputs[f"append_{feature.name}"] = np.concatenate([appended, shown], axis=1)
        real = np.concatenate([case.inputs["append_mask"], np.ones((2, 1), bool)], axis=1)
        (as_event,) = record(reference, [Case("as an event", {**inputs, "append_mask": real})])
        margins = [as_event.margins[f"append_{side}_index"][:, :, -1] for side in "kv"]
        np.testing.assert_array_equal(told.selection[:, c], np.min(margins, axis=(0, 2)))

"""The split model against the unsplit reference, and both against loops in float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from ckv_testing.draw import KINDS, VARIANTS, draw_cases, draw_state, drawn_spec, make_spec
from ckv_testing.slow import Slow

from ckv_export.contract import AttentionSpec, CacheSpec, FeatureSpec, ModelSpec
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.folds import takes_events
from ckv_export.model.reference import Reference
from ckv_export.model.registry import build_model
from ckv_export.parity.compare import compare_values
from ckv_export.parity.expected import ExpectedCase, record
from ckv_export.parity.gate import judge
from ckv_export.parity.tolerances import tolerance_of
from ckv_export.runtimes.torch import TorchRunner

pytestmark = pytest.mark.usefixtures("one_thread")

State = Mapping[str, torch.Tensor]
FLAGGED = [("sim", True), ("eta", True), ("eta", False), ("sdim", True), ("sdim", False)]
FLAGGED += [("twin", True)]


def check_split(spec: ModelSpec, state: State, cases: list[ExpectedCase]) -> None:
    """Every output of every case agrees, and no row number needed an excuse."""
    model = build_model(spec, state)
    prefill, decode = (TorchRunner(g, g.io) for g in (PrefillGraph(model), DecodeGraph(model)))
    outcome = judge(spec, prefill, decode, cases)
    assert outcome.passed, outcome.first_failure.sentence()
    assert sum(r.explained for r in outcome.results) == 0
    compared = {r.tensor for r in outcome.results}
    assert compared == {t.name for g in (prefill, decode) for t in g.io.outputs}


def check_reference(spec: ModelSpec, state: State, cases: list[ExpectedCase]) -> None:
    """The reference answers what the loops do; rows exactly, numbers within the gate's bounds."""
    slow = Slow(spec, state)
    for case in cases:
        expected = slow.outputs(case.case.inputs)
        close(case.outputs["score"], expected["score"], "score", case.case.name)
        for suffix, _, width in CacheSpec.of(spec).tensors:
            parts = [case.outputs[f"{part}_{suffix}"][:, 0] for part in ("cache", "append")]
            got = np.concatenate(parts, axis=1)
            if width is None:
                np.testing.assert_array_equal(got, expected[suffix], err_msg=case.case.name)
            else:
                close(got, expected[suffix], suffix, case.case.name)


def drawn_cases(spec: ModelSpec, state: State, seed: int) -> list[ExpectedCase]:
    """The reference's answers, which must differ: a dead model would agree with anything."""
    cases = record(Reference(spec, state), draw_cases(spec, seed))
    spread = np.ptp(np.concatenate([c.outputs["score"].ravel() for c in cases]))
    assert spread > 100 * tolerance_of("score").absolute
    return cases


def close(got: np.ndarray, expected: np.ndarray, tensor: str, case: str) -> None:
    wanted = expected.astype(np.float32)
    result = compare_values(case, tensor, got, wanted, [tolerance_of(tensor)])
    assert result.passed, result.sentence()


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("width", [15, 16, 17])
@pytest.mark.parametrize("kind", ["sim", "eta", "twin"])
def test_events_narrower_than_d_as_wide_and_wider(
    kind: str, width: int, heads: int, seed: int, rng: np.random.Generator
):
    """Where the long branch begins to take events for their own keys and values."""
    features = (FeatureSpec("item_id", "item", "categorical", width, vocab_size=30),)
    attention = AttentionSpec(16, heads, 2, 1, 10, 13)
    spec = make_spec(kind, features=features, attention=attention)
    assert takes_events(spec) == (heads == 1 and width < 17)
    state = draw_state(spec, rng)
    check_split(spec, state, drawn_cases(spec, state, seed))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("kind", "flag"), FLAGGED)
def test_reference_split_model_and_loops_agree(
    kind: str, flag: bool, variant: str, seed: int, rng: np.random.Generator
):
    spec = make_spec(kind, variant, flag=flag)
    state = draw_state(spec, rng)
    cases = drawn_cases(spec, state, seed)
    check_reference(spec, state, cases)
    check_split(spec, state, cases)


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_configurations_agree(kind: str, seed: int, rng: np.random.Generator):
    for _ in range(3):
        spec = drawn_spec(kind, rng)
        print(spec)
        state = draw_state(spec, rng)
        cases = drawn_cases(spec, state, seed)
        check_reference(spec, state, cases)
        check_split(spec, state, cases)

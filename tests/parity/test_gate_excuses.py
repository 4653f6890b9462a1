"""What the gate excuses, what it finds over all cases together, and where it says it can't."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from ckv_testing.draw import draw_state, make_spec
from ckv_testing.exports import Export
from ckv_testing.judging import drawn, failed, failed_over_all, split
from ckv_testing.runs import Tampered

from ckv_export.model.registry import build_reference
from ckv_export.parity.expected import ExpectedCase, record
from ckv_export.parity.gate import EVERY_CASE, judge, judge_all, unproven_scores
from ckv_export.parity.inputs import Case, generate
from ckv_export.parity.replay import kept
from ckv_export.parity.tolerances import EXPLAINED_MARGIN, ROUNDOFF, tolerance_of
from ckv_export.runtimes.base import Arrays

pytestmark = pytest.mark.usefixtures("one_thread")

Exported = Callable[[str], Export]


def with_margin(case: ExpectedCase, margin: float) -> ExpectedCase:
    margins = {name: np.full_like(a, margin) for name, a in case.margins.items()}
    return dataclasses.replace(case, margins=margins)


def test_scores_after_an_excused_flip_are_not_compared(exported: Exported):
    """User 0's appended event got another row: its score is another, and nobody is to blame."""
    made = exported("sim")
    prefill, decode = made.torch_runners()

    def outputs(arrays: Arrays) -> None:
        if arrays["append_k_index"].size:
            arrays["append_k_index"][0, 0, 0] = (arrays["append_k_index"][0, 0, 0] + 1) % 10
            arrays["score"][0] += 0.25

    tampered = Tampered(decode, outputs=outputs)
    close = [with_margin(c, EXPLAINED_MARGIN / 2) for c in made.cases]
    outcome = judge(made.spec, prefill, tampered, close)
    assert outcome.passed
    assert sum(r.explained for r in outcome.results) == sum(c.case.appended > 0 for c in made.cases)
    far = [with_margin(c, EXPLAINED_MARGIN * 2) for c in made.cases]
    outcome = judge(made.spec, prefill, tampered, far)
    assert failed(outcome) == {"append_k_index"}

    def others(arrays: Arrays) -> None:
        outputs(arrays)
        arrays["score"][1:] += 0.25

    outcome = judge(made.spec, prefill, Tampered(decode, outputs=others), close)
    assert failed(outcome) == {"score"}


@pytest.mark.parametrize("tensor", ["cache_k_index", "cache_v_user"])
def test_what_is_wrong_behind_a_past_alone(tensor: str):
    """Prefill of a whole history is right, of its second chunk it isn't."""
    spec, (prefill, decode), cases = drawn("hstu")
    past = []

    def see(arrays: Arrays) -> None:
        past.append(arrays["past_mask"].shape[1])

    def change(arrays: Arrays) -> None:
        if past[-1]:
            arrays[tensor][:, 1] += arrays[tensor].dtype.type(1)

    outcome = judge(spec, Tampered(prefill, see, change), decode, cases)
    # Decode is fed what was prefilled in chunks, but for row numbers.
    assert failed(outcome) == ({tensor} if tensor.endswith("_index") else {tensor, "score"})
    assert outcome.first_failure.tensor == tensor
    assert outcome.first_failure.case.endswith("prefill in two chunks")


@pytest.mark.parametrize(
    ("layer", "precision", "passed"), [(1, "fp16", True), (1, "fp32", False), (0, "fp16", False)]
)
def test_flip_is_excused_by_what_its_layer_may_round(layer: int, precision: str, passed: bool):
    spec, (prefill, decode), cases = drawn("hstu")

    def flip(arrays: Arrays) -> None:
        arrays["cache_k_index"][0, layer, 0] ^= 1

    close = [with_margin(cases[0], 1e-3)]
    assert judge(spec, Tampered(prefill, outputs=flip), decode, close, precision).passed == passed


@pytest.mark.parametrize("user", [0, 1])
def test_what_follows_from_an_excused_flip_is_not_compared(user: int):
    """User 0's event got another row, so in the layer above it is another; user 1's isn't."""
    spec, (prefill, decode), cases = drawn("hstu")

    def change(arrays: Arrays) -> None:
        arrays["cache_k_index"][0, 0, 0] ^= 1
        arrays["cache_v_index"][user, 1, 0] ^= 1
        arrays["cache_v_user"][user, 1, 0] += 1

    close = with_margin(cases[0], EXPLAINED_MARGIN * 2)
    close.margins["cache_k_index"][:, 0] = EXPLAINED_MARGIN / 2
    outcome = judge(spec, Tampered(prefill, outputs=change), decode, [close])
    if user == 0:
        assert outcome.passed
    else:
        assert {"cache_v_index", "cache_v_user"} <= failed(outcome)


def test_half_precision_excuses_no_more_flips_than_rounding_makes():
    """Each of two by its margin, both together not; in fp32 it is the margin alone that counts."""
    spec, (prefill, decode), cases = drawn("hstu")

    def flip(arrays: Arrays) -> None:
        arrays["cache_k_index"][:2, 1, 0] ^= 1

    tampered, close = Tampered(prefill, outputs=flip), [with_margin(cases[0], 0.0)]
    assert judge(spec, tampered, decode, close).passed
    outcome = judge(spec, tampered, decode, close, "fp16")
    assert failed_over_all(outcome) == "cache_k_index"
    assert "were excused as near-ties" in outcome.first_failure.sentence()


@pytest.mark.parametrize("allowed", [0.95, 1.05])
def test_mean_error_of_a_half_precision_is_a_roundoff_a_layer(allowed: float):
    """Over all scores: that of the first case is as much larger as there are others."""
    spec, (prefill, decode), cases = drawn("hstu")
    sizes = [case.outputs["score"].size for case in cases]
    error = allowed * 2 * ROUNDOFF["fp16"] * sum(sizes) / sizes[0]

    def shift(arrays: Arrays) -> None:
        if arrays["score"].shape == cases[0].outputs["score"].shape:
            arrays["score"] += np.float32(error)

    tampered = Tampered(decode, outputs=shift)
    outcome = judge_all(spec, [prefill, tampered], cases, None, "fp16")
    if allowed < 1:
        assert outcome.passed
    else:
        assert failed_over_all(outcome) == "score"


def test_user_parts_have_a_mean_error_too():
    spec, (prefill, decode), cases = drawn("hstu")

    def shift(arrays: Arrays) -> None:
        arrays["cache_v_user"][:, 1] += np.float32(30 * ROUNDOFF["fp16"])

    outcome = judge(spec, Tampered(prefill, outputs=shift), decode, cases, "fp16")
    assert failed_over_all(outcome) == "cache_v_user"


@pytest.mark.parametrize(
    ("precision", "roundings", "everywhere", "failing"),
    [
        ("fp32", 3, False, [True, True]),
        ("fp16", 3, False, [False, False]),
        ("fp16", 16, False, [True, True, True]),
        ("fp16", 1.5, True, [False, False, True]),
    ],
)
def test_scores_by_an_item_table_are_judged_as_those_of_one_layer(
    precision: str, roundings: float, everywhere: bool, failing: list[bool]
):
    """Each by the precision, then all together by their mean.

    The decode graph stands in for the one that takes items: its cache for the table.
    """
    spec, (prefill, decode), cases = drawn("sim")
    case = dataclasses.replace(max(cases, key=lambda c: c.case.cached), selection=None)
    cache = {name: a for name, a in case.outputs.items() if name.startswith("cache_")}

    def shift(arrays: Arrays) -> None:
        off = arrays["score"] if everywhere else arrays["score"][:1, :1]
        off += np.float32(roundings * ROUNDOFF["fp16"])

    runners = [prefill, decode, Tampered(decode, outputs=shift)]
    outcome = judge_all(spec, runners, [case, case], kept(spec, cache), precision)
    told = [r for r in outcome.results if r.tensor == "score"][2:]
    names = [f"{case.case.name}, by item table"] * 2 + [EVERY_CASE]
    assert [r.case for r in told] == names[: len(failing)]
    assert [not r.passed for r in told] == failing
    assert outcome.passed == (not any(failing))


def test_outcome_of_nothing_passes_vacuously():
    """No case, no comparison: `passed` alone is not evidence, the number of cases is reported."""
    spec = make_spec("sim")
    runners = split(spec, draw_state(spec, np.random.default_rng(0)))
    outcome = judge(spec, *runners, [])
    assert outcome.passed
    assert outcome.results == ()
    assert outcome.worst("score") == 0.0
    assert outcome.first_failure is None


# -- what it can't find


@pytest.mark.parametrize(
    ("logit", "precision", "told"),
    [(-16.0, "fp32", True), (30.0, "fp32", True), (0.0, "fp32", False), (-6.0, "fp32", False),
     (-6.0, "bf16", True)],
)  # fmt: skip
def test_scores_that_rounding_could_make_one_are_told_of(logit: float, precision: str, told: bool):
    """Clicks so rare, or a sigmoid so saturated, that a graph of one score would pass."""
    spec = make_spec("sim")
    state = draw_state(spec, np.random.default_rng(1))
    (last,) = [n for n, t in state.items() if n.startswith("dnn.") and t.shape == (1,)]
    weight = f"{last.removesuffix('bias')}weight"
    state[weight] = state[weight] / state[weight].abs().max() / 64
    state[last] = state[last] * 0 + logit
    cases = record(build_reference(spec, state), generate(spec, 0)[:4])
    prefill, decode = split(spec, state)
    middle = np.concatenate([c.outputs["score"].ravel() for c in cases]).mean()

    def one_for_all(arrays: Arrays) -> None:
        arrays["score"][:] = middle

    wrong = judge(spec, prefill, Tampered(decode, outputs=one_for_all), cases, precision)
    right = judge(spec, prefill, decode, cases, precision)
    assert right.passed
    assert right.unproven == wrong.unproven
    assert wrong.passed == bool(right.unproven) == told


def with_scores(*scores: float) -> list[ExpectedCase]:
    return [
        ExpectedCase(Case("", {}), {"score": np.full((1, 2), s, np.float32)}, {}) for s in scores
    ]


@pytest.mark.parametrize(
    ("precision", "apart"),
    [("fp32", 2 * tolerance_of("score").absolute), ("bf16", 2 * ROUNDOFF["bf16"])],
)
def test_one_score_that_rounding_does_not_explain_is_enough(precision: str, apart: float):
    """In half precision the mean decides; of two scores it is half the distance."""
    near, far = (with_scores(0.5, 0.5 + share * apart) for share in (0.9, 1.1))
    assert "between 0.5 and 0.5" in unproven_scores(near, 1, precision)
    assert unproven_scores(far, 1, precision) == ""
    assert unproven_scores([*near, *with_scores(np.nan)], 1, precision) == ""
    none = [dataclasses.replace(near[0], outputs={"score": np.zeros((1, 0), np.float32)})]
    assert unproven_scores(none, 1, precision) == ""
    assert unproven_scores([*near, *none], 1, precision) == unproven_scores(near, 1, precision)

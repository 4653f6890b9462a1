"""A search that was a near-tie is excused in the gate; a search that is wrong is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ckv_testing.draw import draw_state, make_spec
from ckv_testing.exports import Export

from ckv_export.contract import DnnSpec, FeatureSpec, ModelSpec
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model import ops
from ckv_export.model.reference import Reference
from ckv_export.model.registry import build_model
from ckv_export.parity.expected import ExpectedCase, load, record, save
from ckv_export.parity.gate import EVERY_CASE, RuntimeResult, compare_run, judge
from ckv_export.parity.inputs import Case
from ckv_export.parity.replay import CaseRun
from ckv_export.parity.tolerances import EXPLAINED_SELECTION, MOST_EXCUSED_SCORES
from ckv_export.runtimes.torch import TorchRunner

pytestmark = pytest.mark.usefixtures("one_thread")

NEAR, FAR = 2.0**-22, 2.0**-18

FEATURES = (
    FeatureSpec("item_id", "item", "categorical", 6, vocab_size=30),
    FeatureSpec("twist", "item", "vector", 1, length=1),
)


def model(rng: np.random.Generator, size: float) -> tuple[ModelSpec, dict[str, torch.Tensor]]:
    """A SIM that searches by an item's id and, with a weight of `size`, by its twist."""
    spec = make_spec("sim", features=FEATURES, topk=1, dnn=DnnSpec((), (), batch_norm=False))
    state = draw_state(spec, rng)
    for name in ("long.gsu_event.weight", "long.gsu_target.weight"):
        state[name] = torch.zeros_like(state[name])
        state[name][0, 0] = 1.0
    state["long.gsu_event.weight"][0, -1] = size
    state["embedding.item_id.table"][1:, 0] = 1.0
    # What is found must matter, whatever was drawn: its twist alone moves the logit by 3 and more.
    state["long.v.weight"][:, -1] = 3.0
    state["long.o.weight"][:] = 0.05
    state["dnn.0.weight"][:, -spec.d_event :] = 0.1
    return spec, state


def twins() -> Case:
    """Two events alike but for their twist: +1 or -1 decides which of them is found."""
    one = np.ones((1, 1), np.int32)
    twist = np.array([[[-1.0], [1.0]]], np.float32)
    return Case(
        "twins",
        {
            "history_item_id": np.full((1, 2), 3, np.int32),
            "history_twist": twist,
            "history_mask": np.ones((1, 2), bool),
            "append_item_id": one[:, :0],
            "append_twist": twist[:, :0],
            "append_mask": np.ones((1, 0), bool),
            "candidate_item_id": one,
            "candidate_twist": np.zeros((1, 1, 1), np.float32),
        },
    )


def runners(spec: ModelSpec, state) -> tuple[TorchRunner, TorchRunner]:
    built = build_model(spec, state)
    graphs = (PrefillGraph(built), DecodeGraph(built))
    return TorchRunner(graphs[0], graphs[0].io), TorchRunner(graphs[1], graphs[1].io)


def with_the_other_found(spec: ModelSpec, state) -> tuple[TorchRunner, TorchRunner]:
    """The same model, whose search prefers the other twist."""
    weight = state["long.gsu_event.weight"].clone()
    weight[0, -1] *= -1
    return runners(spec, {**state, "long.gsu_event.weight": weight})


@pytest.mark.parametrize("size", [NEAR, FAR])
def test_near_tie_is_excused_and_counted(size: float, rng: np.random.Generator):
    spec, state = model(rng, size)
    (case,) = record(Reference(spec, state), [twins()])
    assert case.selection == pytest.approx(2 * size, rel=0.01)
    right = judge(spec, *runners(spec, state), [case])
    assert right.passed
    assert sum(r.explained for r in right.results) == 0, "nothing to excuse"
    outcome = judge(spec, *with_the_other_found(spec, state), [case])
    (score,) = [r for r in outcome.results if r.tensor == "score" and r.case != EVERY_CASE]
    if size == NEAR:
        assert outcome.passed
        assert (score.passed, score.explained) == (True, 1)
    else:
        assert not outcome.passed
        assert not score.passed
        assert score.error > 0.01, "another event was found, and it matters"


def marked(cases: list[ExpectedCase], margin: float) -> list[ExpectedCase]:
    """The cases with that selection margin in place of their own."""
    return [
        dataclasses.replace(c, selection=np.full_like(c.outputs["score"], margin)) for c in cases
    ]


def first_failure(outcome: RuntimeResult) -> tuple[str, str]:
    assert outcome.first_failure is not None
    return outcome.first_failure.tensor, outcome.first_failure.case


def test_wrong_search_fails_however_near_its_ties_are(
    exported: Callable[[str], Export], monkeypatch: pytest.MonkeyPatch
):
    """One event too few: every score is off, so margins below the bound can't be the reason."""
    made = exported("twin")
    usual = ops.select_largest
    monkeypatch.setattr(ops, "select_largest", lambda s, k: usual(s, k - 1))
    own = judge(made.spec, *made.torch_runners(), made.cases)
    assert first_failure(own) != ("score", EVERY_CASE), "a single score is wrong by its own margin"
    near = marked(made.cases, EXPLAINED_SELECTION / 2)
    outcome = judge(made.spec, *made.torch_runners(), near)
    assert first_failure(outcome) == ("score", EVERY_CASE)
    assert not outcome.passed
    sentence = outcome.first_failure.sentence()
    assert "were excused as near-ties" in sentence
    assert f"{MOST_EXCUSED_SCORES:.2%}" in sentence


def test_near_ties_excuse_no_nan(exported: Callable[[str], Export]):
    from ckv_testing.runs import Tampered

    made = exported("sim")
    prefill, decode = made.torch_runners()

    def nan(arrays) -> None:
        arrays["score"][:, 0] = np.nan

    near = marked(made.cases, 0.0)
    assert not judge(made.spec, prefill, Tampered(decode, outputs=nan), near).passed


def test_margins_are_recorded_in_the_file(exported: Callable[[str], Export], tmp_path):
    made = exported("sim")
    save(tmp_path / "cases.npz", made.cases)
    for a, b in zip(load(tmp_path / "cases.npz"), made.cases, strict=True):
        np.testing.assert_array_equal(a.selection, b.selection)
    old = [dataclasses.replace(case, selection=None) for case in made.cases]
    save(tmp_path / "cases.npz", old)
    assert all(case.selection is None for case in load(tmp_path / "cases.npz"))


def test_candidate_that_is_routed_is_excused_by_its_routers_margin(rng: np.random.Generator):
    """Of a model with layers: by the precision of those below, and no more widely in fp32."""
    scores = rng.random((1, 40)).astype(np.float32)
    rows = np.zeros((1, 2, 1), np.int32)
    outputs = {"score": scores, "cache_k_index": rows, "append_k_index": rows[..., :0]}
    margins = {name: a.astype(np.float32) for name, a in outputs.items() if name != "score"}
    wrong = scores.copy()
    wrong[0, 7] += 0.4
    decoded = {"score": wrong, "append_k_index": rows[..., :0]}
    for precision, margin, passed in (
        ("fp16", 5e-3, True),
        ("fp16", 1e-2, False),
        ("fp32", 5e-3, False),
        ("fp32", 5e-6, True),
    ):
        near = np.full_like(scores, margin)
        case = ExpectedCase(Case("x", {}), outputs, margins, near)
        run = CaseRun(case, {"cache_k_index": rows}, None, decoded, None)
        results = list(compare_run(run, precision))
        assert all(r.passed for r in results) == passed, precision

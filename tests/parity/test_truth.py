"""A bundle's fp32 graphs as the truth: what they answer is what the reference answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.bundles import manifest_of
from ckv_testing.exports import Export
from ckv_testing.hstu import SPEC, exported_hstu

from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.contract import FEATURES
from ckv_export.model.registry import build_reference
from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.inputs import generate
from ckv_export.parity.tolerances import tolerance_of
from ckv_export.parity.truth import GraphTruth, ReferenceTruth, all_cached, cut

pytestmark = pytest.mark.usefixtures("one_thread")

Exported = Callable[[str], Export]


@pytest.fixture(scope="module")
def hstu(tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = exported_hstu(tmp_path_factory.getbasetemp())
    state = load_checkpoint(folder / "hstu.pt").state
    cases = ReferenceTruth(build_reference(SPEC, state), FEATURES, "x").record(generate(SPEC, 3))
    return Export(SPEC, state, folder, cases, 3)


def check(answers: list[ExpectedCase], cases: list[ExpectedCase], layers: int) -> None:
    for got, expected in zip(answers, cases, strict=True):
        assert got.outputs.keys() == expected.outputs.keys()
        if layers == 1:
            assert got.selection is None, "unknown: nothing may be excused by it"
        else:
            np.testing.assert_allclose(got.selection, expected.selection, atol=5e-5)
        for name, array in expected.outputs.items():
            assert got.outputs[name].shape == array.shape
            if name.endswith("_index"):
                np.testing.assert_array_equal(got.outputs[name], array)
                np.testing.assert_allclose(got.margins[name], expected.margins[name], atol=2e-5)
            else:
                bound = tolerance_of(name, layers)
                np.testing.assert_allclose(
                    got.outputs[name], array, rtol=bound.relative, atol=4 * bound.absolute
                )


@pytest.mark.parametrize("kind", ["sim", "eta", "sdim", "twin"])
def test_graphs_answer_as_the_reference_does(kind: str, exported: Exported):
    """Margins of K without a pool are in neither; a pool of one row has none to speak of."""
    made = exported(kind)
    truth = GraphTruth(made.folder, manifest_of(made))
    check(truth.record([c.case for c in made.cases]), made.cases, 1)
    assert str(made.folder) in truth.name


def test_layered_graphs_answer_as_the_reference_does(hstu: Export):
    truth = GraphTruth(hstu.folder, manifest_of(hstu))
    check(truth.record([c.case for c in hstu.cases]), hstu.cases, SPEC.num_layers)


def test_request_is_cut_without_moving_an_event(exported: Exported):
    case = max((c.case for c in exported("sim").cases), key=lambda c: c.cached)
    whole = all_cached(case)
    assert (whole.cached, whole.appended) == (case.cached + case.appended, 0)
    part = cut(dataclasses.replace(case, labels=np.ones(1)), 2, 3, 4)
    assert part.labels == np.ones(1)
    assert (part.cached, part.appended) == (3, 4)
    for name in ("mask", "item_id"):
        joined = whole.inputs[f"history_{name}"]
        np.testing.assert_array_equal(part.inputs[f"history_{name}"], joined[:, 2:5])
        np.testing.assert_array_equal(part.inputs[f"append_{name}"], joined[:, 5:9])
        np.testing.assert_array_equal(
            np.concatenate([case.inputs[f"{g}_{name}"] for g in ("history", "append")], 1), joined
        )
    assert part.inputs["candidate_item_id"] is case.inputs["candidate_item_id"]
    assert all(a.flags.c_contiguous for a in part.inputs.values())


def test_graphs_are_probed_in_their_own_precision(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
):
    """Or ONNX Runtime would have to multiply bf16 numbers, which it can't on the CPU."""
    made, seen = exported("sim"), {}

    def probe(path: Path, precision: str = "fp32") -> None:
        seen[path.name] = precision

    monkeypatch.setattr("ckv_export.parity.truth.GraphProbe", probe)
    GraphTruth(made.folder, manifest_of(made, "bf16"))
    assert seen == {"prefill.onnx": "bf16", "decode.onnx": "bf16"}


def test_without_the_logits_of_every_layer_no_flip_is_excused(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
):
    made = exported("sim")
    truth = GraphTruth(made.folder, manifest_of(made))
    monkeypatch.setattr(truth.probe, "router_logits", lambda side: {})
    (answer,) = truth.record([max((c.case for c in made.cases), key=lambda c: c.cached)])
    assert len(answer.margins) == 4
    assert all(np.isposinf(margin).all() for margin in answer.margins.values())


def test_names_say_who_is_believed(exported: Exported):
    made = exported("sim")
    truth = ReferenceTruth(build_reference(made.spec, made.state), FEATURES, "model.pt")
    assert "PyTorch reference of model.pt" in truth.name
    labels = np.ones(1)
    (answer,) = truth.record([dataclasses.replace(made.cases[0].case, labels=labels)])
    assert answer.case.labels is labels
    np.testing.assert_array_equal(answer.outputs["score"], made.cases[0].outputs["score"])

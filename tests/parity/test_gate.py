"""The gate passes what is right and finds what was broken on purpose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ckv_testing.draw import KINDS, draw_state
from ckv_testing.exports import Export
from ckv_testing.judging import drawn, failed, judged, split
from ckv_testing.runs import Tampered
from onnx import numpy_helper

from ckv_export.model import ops
from ckv_export.parity.expected import load, save
from ckv_export.parity.gate import RuntimeResult, judge, require_pass
from ckv_export.parity.page import write_report
from ckv_export.parity.report import ParityReport
from ckv_export.runtimes.base import Arrays, Runner

pytestmark = pytest.mark.usefixtures("one_thread")

Exported = Callable[[str], Export]


# -- what is right


@pytest.mark.parametrize("kind", KINDS)
def test_exported_files_compute_what_the_reference_does(kind: str, exported: Exported):
    made = exported(kind)
    outcome = judged(made, *made.runners())
    require_pass(outcome)
    assert outcome.runtime.runtime == "onnxruntime"
    assert sum(r.explained for r in outcome.results) == 0, "selections of halves are exact"
    names = [t.name for graph in made.graphs() for t in graph.io.outputs]
    assert {r.tensor for r in outcome.results} == set(names)
    assert {r.case for r in outcome.results} == {c.case.name for c in made.cases}
    assert outcome.worst("score") > 0 or made.spec.kind == "sdim", "was anything compared?"


def test_recorded_cases_judge_as_the_fresh_ones(exported: Exported, tmp_path: Path):
    made = exported("eta")
    save(tmp_path / "cases.npz", made.cases)
    runners = made.torch_runners()
    fresh = judge(made.spec, *runners, made.cases)
    again = judge(made.spec, *runners, load(tmp_path / "cases.npz"))
    assert [r.passed for r in again.results] == [r.passed for r in fresh.results]
    assert {r.tensor for r in again.results} == {r.tensor for r in fresh.results}


def test_results_stand_in_the_order_of_computation(exported: Exported):
    """So that the first failure is the cause, not its consequence."""
    made = exported("sim")
    outcome = judge(made.spec, *made.torch_runners(), made.cases[:1])
    order = [r.tensor for r in outcome.results]
    cache = [t.name for t in made.graphs()[0].io.outputs]
    append = [t.name for t in made.graphs()[1].io.outputs if t.name != "score"]
    assert order == [*cache, *append, "score"]


# -- faults in the files


def broken(
    made: Export, graph: str, change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> RuntimeResult:
    for name in ("prefill", "decode"):
        model = onnx.load(made.folder / f"{name}.onnx")
        if name == graph:
            change(model)
        onnx.save(model, tmp_path / f"{name}.onnx")
    return judged(made, *made.runners(tmp_path))


def nudge(model: onnx.ModelProto, name: str, at: tuple[int, ...], by: float) -> None:
    tensor = next(i for i in model.graph.initializer if i.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array[at] += by
    tensor.CopyFrom(numpy_helper.from_array(array, name))


@pytest.mark.parametrize(
    ("weight", "diverges"),
    [
        ("model.dnn.first.target.weight", {"score"}),
        ("model.dnn.bias", {"score"}),
        ("model.search.value.weight", {"score"}),
        ("model.attention.query.weight", {"score"}),
        ("model.attention.k.user.weight", {"append_k_user", "score"}),
        ("model.attention.v.user.weight", {"append_v_user", "score"}),
        ("model.events.users.embedders.1.column", {"score"}),
    ],
)
def test_one_wrong_weight_in_decode(
    weight: str, diverges: set[str], exported: Exported, tmp_path: Path
):
    made = exported("sim")
    outcome = broken(made, "decode", lambda m: nudge(m, weight, (0,), 0.125), tmp_path)
    assert failed(outcome) == diverges


def test_one_wrong_weight_in_prefill(exported: Exported, tmp_path: Path):
    made = exported("sim")
    weight = "model.attention.v.user.weight"
    outcome = broken(made, "prefill", lambda m: nudge(m, weight, (0, 0), 0.125), tmp_path)
    # Decode is fed what prefill computed: scores follow.
    assert failed(outcome) == {"cache_v_user", "score"}
    assert outcome.first_failure.tensor == "cache_v_user"


def test_one_changed_row_of_a_pool(exported: Exported, tmp_path: Path):
    """A single row of the ten, and only where some event is routed to it."""
    made = exported("sim")
    used = np.concatenate([c.outputs["cache_v_index"].ravel() for c in made.cases])
    row = int(np.bincount(used).argmax())
    name = "model.attention.v.pool"
    outcome = broken(made, "decode", lambda m: nudge(m, name, (row,), 0.25), tmp_path)
    assert failed(outcome) == {"score"}


def test_swapped_index_outputs_of_prefill(exported: Exported, tmp_path: Path):
    def swap(model: onnx.ModelProto) -> None:
        names = {"cache_k_index": "cache_v_index", "cache_v_index": "cache_k_index"}
        for node in model.graph.node:
            for names_of_node in (node.input, node.output):
                names_of_node[:] = [names.get(n, n) for n in names_of_node]

    outcome = broken(exported("sim"), "prefill", swap, tmp_path)
    assert failed(outcome) == {"cache_k_index", "cache_v_index"}
    assert outcome.first_failure.tensor == "cache_k_index"


def test_router_of_prefill_with_two_rows_swapped(exported: Exported, tmp_path: Path):
    """Index 3 for 4 and back: off by one row, far beyond any margin."""

    def swap(model: onnx.ModelProto) -> None:
        name = "model.attention.k.router.logits.weight"
        tensor = next(i for i in model.graph.initializer if i.name == name)
        array = numpy_helper.to_array(tensor).copy()
        array[:, [3, 4]] = array[:, [4, 3]]
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    outcome = broken(exported("sim"), "prefill", swap, tmp_path)
    assert failed(outcome) == {"cache_k_index"}


# -- faults of a host or a runtime


def rolled(name: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = np.roll(arrays[name], 1, axis=1)

    return change


@pytest.mark.parametrize("name", ["history_mask", "history_item_id"])
@pytest.mark.parametrize("kind", KINDS)
def test_history_shifted_by_one(kind: str, name: str, exported: Exported):
    made = exported(kind)
    prefill, decode = made.torch_runners()
    assert "score" in failed(judged(made, prefill, Tampered(decode, feeds=rolled(name))))


@pytest.mark.parametrize("kind", ["sim", "eta"])
def test_the_other_mask_rule(kind: str, exported: Exported):
    """The quirk of one position: aligned where the checkpoint needs fuxictr."""
    made = exported(kind)
    assert made.spec.mask_alignment == "fuxictr"
    spec = dataclasses.replace(made.spec, mask_alignment="aligned")
    prefill, decode = split(spec, made.state)
    assert failed(judged(made, prefill, decode)) == {"score"}


@pytest.mark.parametrize("kind", KINDS)
def test_decode_graph_of_another_model(kind: str, exported: Exported, rng: np.random.Generator):
    """Same shapes throughout, so that nothing but the numbers can tell."""
    made = exported(kind)
    other = split(made.spec, draw_state(made.spec, rng))[1]
    assert "score" in failed(judged(made, made.torch_runners()[0], other))


def test_ties_broken_to_the_highest_position(exported: Exported, monkeypatch: pytest.MonkeyPatch):
    """ETA, where ties between different events are the rule."""
    made = exported("eta")
    usual = ops.select_largest
    monkeypatch.setattr(ops, "select_largest", lambda s, k: usual(s.flip(-1), k).flip(-1))
    assert failed(judged(made, *made.torch_runners())) == {"score"}


def test_one_event_too_few_selected(exported: Exported, monkeypatch: pytest.MonkeyPatch):
    made = exported("twin")
    usual = ops.select_largest
    monkeypatch.setattr(ops, "select_largest", lambda s, k: usual(s, k - 1))
    assert failed(judged(made, *made.torch_runners())) == {"score"}


def test_argmax_that_takes_the_last_of_equal_rows(exported: Exported, monkeypatch):
    """Two rows may be equal by rounding, and excuse a flip; all of them, for padding, never are."""
    made = exported("sim")

    def last_argmax(logits: torch.Tensor, groups: int) -> torch.Tensor:
        rows = logits.shape[-1]
        return (rows - 1 - logits.flip(-1).max(-1).indices).to(torch.int32)

    monkeypatch.setattr(ops, "first_argmax", last_argmax)
    outcome = judged(made, *made.torch_runners())
    assert failed(outcome) == {f"{g}_{side}_index" for g in ("cache", "append") for side in "kv"}
    flipped = [r for r in outcome.results if r.explained]
    assert flipped
    assert {r.tensor.rpartition("_")[2] for r in flipped} == {"index"}
    padded = next(r for r in outcome.results if not r.passed)
    assert padded.worst_margin == np.inf


@pytest.mark.parametrize(
    ("tensor", "change"),
    [
        ("score", lambda a: a + 3e-6),
        ("score", lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, np.nan, a)),
        ("score", lambda a: a[:, ::-1]),
        ("append_k_user", lambda a: a * (1 + 1e-4)),
        ("append_v_index", lambda a: a ^ 1),
        ("append_k_user", lambda a: np.roll(a, 1, axis=2)),
        ("append_k_index", lambda a: np.roll(a, 1, axis=0)),
    ],
)
def test_one_wrong_output_of_decode(tensor: str, change, exported: Exported):
    made = exported("sim")
    prefill, decode = made.torch_runners()

    def outputs(arrays: Arrays) -> None:
        arrays[tensor] = np.ascontiguousarray(change(arrays[tensor])).astype(arrays[tensor].dtype)

    assert failed(judged(made, prefill, Tampered(decode, outputs=outputs))) == {tensor}


FORMS = {
    "an event too few": lambda a: a[:, :, :-1] if a.ndim > 2 else a[:, :-1],
    "a user too few": lambda a: a[:-1],
    "the shape of one": lambda a: np.zeros((1,) * a.ndim, a.dtype),
    "no axis for users": lambda a: a.reshape(-1),
    "double numbers": lambda a: a.astype(np.float64),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["sim", "hstu"])
def test_output_of_another_form(kind: str, form: str, tmp_path: Path):
    """It fails as a wrong number does: named, and with a report."""
    spec, runners, cases = drawn(kind)
    for graph, name in [(g, t.name) for g in (0, 1) for t in runners[g].io.outputs]:

        def change(arrays: Arrays, name: str = name) -> None:
            arrays[name] = FORMS[form](arrays[name])

        tampered: list[Runner] = [*runners]
        tampered[graph] = Tampered(runners[graph], outputs=change)
        outcome = judge(spec, *tampered, cases)
        assert name in failed(outcome)
        assert outcome.first_failure.tensor == name
        assert "where the reference has" in outcome.first_failure.sentence()
        write_report(ParityReport("toy", "ab" * 32, 0, len(cases), (outcome,), {}), tmp_path)


def test_wrong_row_in_the_cache_does_not_hide_what_else_is_wrong(exported: Exported):
    """Decode is fed the reference's rows: only the rows and the score's own fault show."""
    made = exported("sim")
    prefill, decode = made.torch_runners()

    def rows(arrays: Arrays) -> None:
        arrays["cache_k_index"] = (arrays["cache_k_index"] + 1) % 10

    outcome = judged(made, Tampered(prefill, outputs=rows), decode)
    assert failed(outcome) == {"cache_k_index"}

    def score(arrays: Arrays) -> None:
        arrays["score"] += 1e-3

    outcome = judged(made, Tampered(prefill, outputs=rows), Tampered(decode, outputs=score))
    assert failed(outcome) == {"cache_k_index", "score"}

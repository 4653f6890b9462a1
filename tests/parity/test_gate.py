"""The gate passes what is right and finds what was broken on purpose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ckv_testing import hstu_models
from ckv_testing.draw import KINDS, draw_state, make_spec
from ckv_testing.exports import Export
from ckv_testing.runs import Tampered
from onnx import numpy_helper

from ckv_export.contract import ModelSpec
from ckv_export.errors import ParityFailure
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model import ops
from ckv_export.model.registry import build_model, build_reference
from ckv_export.parity.expected import ExpectedCase, load, record, save
from ckv_export.parity.gate import EVERY_CASE, RuntimeResult, judge, judge_all, require_pass
from ckv_export.parity.inputs import generate
from ckv_export.parity.page import write_report
from ckv_export.parity.replay import kept
from ckv_export.parity.report import ParityReport
from ckv_export.parity.tolerances import EXPLAINED_MARGIN, ROUNDOFF
from ckv_export.runtimes.base import Arrays, Runner
from ckv_export.runtimes.torch import TorchRunner

pytestmark = pytest.mark.usefixtures("one_thread")

Exported = Callable[[str], Export]


def judged(made: Export, prefill: Runner, decode: Runner) -> RuntimeResult:
    return judge(made.spec, prefill, decode, made.cases)


def failed(outcome: RuntimeResult) -> set[str]:
    """The tensors that diverge; the message must name the first of them."""
    first = outcome.first_failure
    assert first is not None, "the gate saw nothing"
    assert not outcome.passed
    with pytest.raises(ParityFailure) as error:
        require_pass(outcome)
    assert str(error.value).endswith(first.sentence())
    assert f"computes: {first.tensor} of case {first.case!r}" in str(error.value)
    assert error.value.exit_code == 1
    return {r.tensor for r in outcome.results if not r.passed}


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


def split(spec, state) -> tuple[TorchRunner, TorchRunner]:
    model = build_model(spec, state)
    graphs = (PrefillGraph(model), DecodeGraph(model))
    return TorchRunner(graphs[0], graphs[0].io), TorchRunner(graphs[1], graphs[1].io)


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


def drawn(kind: str) -> tuple[ModelSpec, tuple[TorchRunner, TorchRunner], list[ExpectedCase]]:
    """A model, its split form, and three of its cases; the first is of one event."""
    rng = np.random.default_rng(1)
    layered = kind == "hstu"
    spec = hstu_models.make_spec("two layers") if layered else make_spec(kind)
    state = hstu_models.draw(spec, rng, 8) if layered else draw_state(spec, rng)
    state = {name: tensor.float() for name, tensor in state.items()}
    chosen = [case for n, case in enumerate(generate(spec, 0)) if n in (2, 6, 7)]
    cases = record(build_reference(spec, state), chosen)
    return spec, split(spec, state), cases


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


# -- excused flips of appended events


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


def failed_over_all(outcome: RuntimeResult) -> str:
    """The tensor that no single case fails by."""
    first = outcome.first_failure
    assert first is not None
    assert first.case == EVERY_CASE
    return first.tensor


def test_outcome_of_nothing_passes_vacuously():
    """No case, no comparison: `passed` alone is not evidence, the number of cases is reported."""
    spec = make_spec("sim")
    runners = split(spec, draw_state(spec, np.random.default_rng(0)))
    outcome = judge(spec, *runners, [])
    assert outcome.passed
    assert outcome.results == ()
    assert outcome.worst("score") == 0.0
    assert outcome.first_failure is None

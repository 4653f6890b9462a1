"""Faults put into one node of a graph: the node that is named is that one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from ckv_testing.bundles import manifest_of
from ckv_testing.exports import Export
from onnx import TensorProto, helper, numpy_helper

from ckv_export.errors import ExportError
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.model.registry import build_model
from ckv_export.onnx_export.export import export_graph
from ckv_export.onnx_export.save import save_models
from ckv_export.parity.fault import Believed, localize, unoptimised
from ckv_export.parity.gate import EVERY_CASE, RuntimeResult, judge
from ckv_export.parity.localize import Divergence, Localizer, difference, last_uses, paired
from ckv_export.parity.probe import GraphProbe, Step, top_margin
from ckv_export.parity.replay import decode_feeds, forced_entries, prefill_feeds
from ckv_export.parity.tolerances import INSIDE
from ckv_export.runtimes.base import Arrays

pytestmark = pytest.mark.usefixtures("one_thread")

Exported = Callable[[str], Export]
Change = Callable[[onnx.ModelProto], None]


def broken(made: Export, graph: str, change: Change, folder: Path) -> Path:
    """A copy of the graphs with one of them changed."""
    for name in ("prefill", "decode"):
        model = onnx.load(made.folder / f"{name}.onnx")
        if name == graph:
            change(model)
        onnx.save(model, folder / f"{name}.onnx")
    return folder


def outcome_of(made: Export, folder: Path) -> RuntimeResult:
    return judge(made.spec, *made.runners(folder), made.cases)


def located(made: Export, folder: Path, believed: Believed | None = None) -> Divergence | str:
    manifest = manifest_of(made)
    believed = believed or Believed(made.folder, "the right graph", {})
    return localize(folder, manifest, outcome_of(made, folder), believed, None)


def nudged(weight: str, by: float = 0.125) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(i for i in model.graph.initializer if i.name == weight)
        array = numpy_helper.to_array(tensor).copy()
        array.ravel()[0] += array.dtype.type(by)
        tensor.CopyFrom(numpy_helper.from_array(array, weight))

    return change


def negated(model: onnx.ModelProto, weight: str) -> None:
    """Too much for any rounding, wherever the numbers of a weight matter."""
    tensor = next(i for i in model.graph.initializer if i.name == weight)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(-array, weight))


def rows_of_v_for_k(model: onnx.ModelProto) -> None:
    """Keys are gathered by the row numbers of values; there are fewer of those rows."""
    (node,) = [n for n in model.graph.node if n.op_type == "PooledAttention"]
    (body,) = [f for f in model.functions if f.name == "PooledAttention"]
    formal = list(body.input)
    node.input[formal.index("ckv_index_k")] = node.input[formal.index("ckv_index_v")]


def user(model: onnx.ModelProto, weight: str) -> str:
    """Name of the node that multiplies by a weight."""
    (node,) = [n for n in model.graph.node if weight in n.input]
    return node.name


@pytest.mark.parametrize(
    ("graph", "weight"),
    [
        ("decode", "model.dnn.first.target.weight"),
        ("decode", "model.search.value.weight"),
        ("decode", "model.attention.query.weight"),
        ("decode", "model.gsu_event.weight"),
        ("prefill", "model.attention.v.user.weight"),
        ("prefill", "model.attention.k.router.logits.weight"),
    ],
)
def test_wrong_weight_is_found_where_it_is_used(
    graph: str, weight: str, exported: Exported, tmp_path: Path
):
    made = exported("sim")
    folder = broken(made, graph, nudged(weight, 2.0), tmp_path)
    found = located(made, folder)
    assert isinstance(found, Divergence)
    model = onnx.load(made.folder / f"{graph}.onnx")
    assert (found.graph, found.node) == (graph, f"{found.op} {user(model, weight)}")
    assert found.error > found.allowed
    assert found.node in found.sentence()
    assert "the right graph" in found.sentence()


def test_what_only_all_cases_together_tell_is_looked_for_in_the_case_that_tells_most(
    exported: Exported, tmp_path: Path
):
    """Each wrong score would be a near-tie of the search; so many of them are no accident."""
    made = exported("sim")
    near = [dataclasses.replace(c, selection=np.zeros_like(c.outputs["score"])) for c in made.cases]
    weight = "model.dnn.first.target.weight"
    folder = broken(made, "decode", nudged(weight, 2.0), tmp_path)
    outcome = judge(made.spec, *made.runners(folder), near)
    assert outcome.first_failure.case == EVERY_CASE
    most = max(outcome.each_case, key=lambda r: r.explained)
    believed = Believed(made.folder, "the right graph", {})
    found = localize(folder, manifest_of(made), outcome, believed, None)
    assert isinstance(found, Divergence)
    model = onnx.load(made.folder / "decode.onnx")
    assert (found.case, found.node) == (most.case, f"MatMul {user(model, weight)}")


def test_swapped_index_is_found_inside_the_function(exported: Exported, tmp_path: Path):
    """The function is inlined first: its first Gather gets the wrong rows."""
    made = exported("sim")
    assert made.spec.attention.pool_rows_v < made.spec.attention.pool_rows_k
    found = located(made, broken(made, "decode", rows_of_v_for_k, tmp_path))
    assert isinstance(found, Divergence)
    assert (found.graph, found.op) == ("decode", "Gather")
    assert "inside PooledAttention_0" in found.node
    assert found.tensor.startswith("ckv_rows")


def test_shifted_mask_is_found(exported: Exported, tmp_path: Path):
    """The window's mask taken one event later than it should."""
    made = exported("sim")
    masks = []

    def change(model: onnx.ModelProto) -> None:
        by_output = {n.output[0]: n for n in model.graph.node}
        (attention,) = [n for n in model.graph.node if n.op_type == "PooledAttention"]
        gather = by_output[by_output[attention.input[-1]].input[0]]
        masks.append(gather.output[0])
        model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
        late = [
            helper.make_node("Add", [gather.input[1], "one"], ["later"], name="Later"),
            helper.make_node("Shape", [gather.input[0]], ["events"], start=1, name="Events"),
            helper.make_node("Sub", ["events", "one"], ["last"], name="Last"),
            helper.make_node("Min", ["later", "last"], ["kept"], name="Kept"),
        ]
        place = list(model.graph.node).index(gather)
        for node in reversed(late):
            model.graph.node.insert(place, node)
        gather.input[1] = "kept"

    folder = broken(made, "decode", change, tmp_path)
    assert not outcome_of(made, folder).passed
    found = located(made, folder)
    assert isinstance(found, Divergence)
    assert (found.op, [found.tensor]) == ("Gather", masks)


def test_graph_of_another_model_diverges_at_once(exported: Exported, tmp_path: Path):
    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2:
                array = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(array[::-1].copy(), tensor.name))

    made = exported("sim")
    found = located(made, broken(made, "decode", change, tmp_path))
    assert isinstance(found, Divergence)
    assert found.op == "Gather", "an embedding table is read first of all"


def test_right_graph_has_no_node_to_blame(exported: Exported):
    made = exported("sim")
    told = located(made, made.folder)
    assert isinstance(told, str)
    assert "no tensor differs from the right graph by more than rounding" in told


def test_without_another_graph_a_wrong_weight_can_not_be_told(exported: Exported, tmp_path: Path):
    """The same file is wrong in the same way; the sentence says what to give."""
    made = exported("sim")
    folder = broken(made, "decode", nudged("model.dnn.bias"), tmp_path)
    told = located(made, folder, unoptimised(folder, manifest_of(made)))
    assert isinstance(told, str)
    assert "without graph optimisations" in told
    assert "--against" in told


def feeds(made: Export, number: int) -> tuple[Arrays, Arrays]:
    """Inputs of prefill and decode in one case."""
    case = made.cases[number]
    prefill, decode = made.graphs()
    cache = {n: a for n, a in case.outputs.items() if n.startswith("cache_")}
    return (
        prefill_feeds(prefill.io, case, slice(0, case.case.cached)),
        decode_feeds(decode.io, case, forced_entries(made.spec, case, cache)),
    )


@pytest.mark.parametrize("kind", ["sim", "eta", "sdim", "twin"])
def test_optimisations_change_nothing_that_counts(kind: str, exported: Exported):
    made = exported(kind)
    long = max(range(len(made.cases)), key=lambda n: made.cases[n].case.cached)
    for name, given in zip(("prefill", "decode"), feeds(made, long), strict=True):
        path = made.folder / f"{name}.onnx"
        localizer = Localizer(GraphProbe(path), GraphProbe(path, optimised=False))
        assert len(localizer.pairs) > 20
        assert localizer.first(given) is None


# -- the parts


def test_every_tensor_can_be_asked_for(exported: Exported):
    made = exported("sim")
    probe = GraphProbe(made.folder / "decode.onnx")
    inside = [name for step in probe.steps for name in step.outputs]
    assert not any(step.op == "PooledAttention" for step in probe.steps), "inlined"
    found = probe.run(feeds(made, 5)[1], inside)
    assert set(found) == set(inside)
    np.testing.assert_allclose(found["score"], made.cases[5].outputs["score"], rtol=0, atol=1e-5)
    assert {s.caller for s in probe.steps if s.outputs[0].startswith("ckv_")} == {
        "PooledAttention_0"
    }


def test_margins_of_the_router_can_be_read_from_the_graph(exported: Exported):
    made = exported("sim")
    probe = GraphProbe(made.folder / "prefill.onnx")
    long = max(range(len(made.cases)), key=lambda n: made.cases[n].case.cached)
    for side in "kv":
        ((layer, name),) = probe.router_logits(side).items()
        assert layer == 0
        logits = probe.run(feeds(made, long)[0], [name])[name]
        logits = logits[..., : made.spec.attention.pool_rows(side)]
        ordered = np.sort(logits, axis=-1)
        lead = ordered[..., -1] - ordered[..., -2]
        tied = ordered[..., 0] == ordered[..., -1]
        np.testing.assert_array_equal(top_margin(logits), np.where(tied, np.inf, lead))
        margin = made.cases[long].margins[f"cache_{side}_index"][:, 0]
        np.testing.assert_allclose(top_margin(logits), margin, atol=1e-5)
    assert np.isinf(top_margin(np.zeros((2, 1)))).all()


def test_no_model_at_all(tmp_path: Path):
    (tmp_path / "x.onnx").write_bytes(b"junk")
    with pytest.raises(ExportError, match="no ONNX model"):
        GraphProbe(tmp_path / "x.onnx")


def step(op: str, name: str, inputs: str, output: str) -> Step:
    return Step(name, op, tuple(inputs), (output,))


def test_nodes_are_paired_across_precisions():
    """Casts have no counterpart, nor has what only one of the graphs has."""
    fp32 = [
        step("MatMul", "m", "aw", "b"),
        step("Relu", "r", "b", "c"),
        step("Add", "s", "cc", "d"),
    ]
    fp16 = [
        step("Cast", "to16", "a", "h"),
        step("MatMul", "m", "hv", "b"),
        step("Relu", "r", "b", "c"),
        step("Cast", "to32", "c", "e"),
        step("Add", "s", "ee", "d"),
    ]
    assert [(a.name, b.name) for a, b in paired(fp16, fp32)] == [("m", "m"), ("r", "r"), ("s", "s")]
    longer = [*fp16[:3], step("Sqrt", "x", "c", "q"), *fp16[3:]]
    assert [(a.name, b.name) for a, b in paired(longer, fp32)] == [
        ("m", "m"), ("r", "r"), ("s", "s")
    ]  # fmt: skip


PAIRED = {
    "as many nodes, one of another kind": (
        [step("Relu", "r", "a", "b"), step("Exp", "x", "b", "c"), step("Neg", "n", "c", "d")],
        [step("Relu", "r", "a", "b"), step("Sqrt", "x", "b", "c"), step("Neg", "n", "c", "d")],
        "bd",
    ),
    "those of a function, which have no names": (
        [step("Mul", "", "a", "x"), step("Mul", "", "a", "y")],
        [step("Mul", "", "a", "y")],
        "y",
    ),
    "not with one that reads another number, be it behind two casts": (
        [step("Relu", "r", "a", "b"), step("Tanh", "t", "a", "q"), step("Cast", "", "b", "h"),
         step("Cast", "", "h", "c"), step("Exp", "x", "c", "e"), step("Neg", "n", "c", "d")],
        [step("Relu", "r", "a", "b"), step("Tanh", "t", "a", "q"), step("Neg", "n", "q", "d")],
        "bq",
    ),
    "one that is fed what only the other graph has": (
        [step("Relu", "r", "a", "b"), step("Neg", "n", "b", "d")],
        [step("Relu", "r", "a", "b"), step("Exp", "x", "b", "c"), step("Neg", "n", "c", "d")],
        "bd",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", PAIRED)
def test_nodes_are_paired_by_what_they_are_and_where(what: str):
    ours, theirs, made = PAIRED[what]
    found = [(a.outputs, b.outputs) for a, b in paired(ours, theirs)]
    assert found == [((name,), (name,)) for name in made]


def test_nodes_behind_one_that_only_one_graph_has_are_never_paired_with_another():
    """There the column of a mask is made once for both products; here once in each precision."""
    fp32 = [
        step("Concat", "Concat_0", "ha", "m"),
        step("MatMul", "s/q/MatMul_0", "tw", "q"),
        step("Unsqueeze", "Unsqueeze_0", "m", "c"),
        step("Mul", "Mul_0", "ec", "k"),
        step("Unsqueeze", "s/Unsqueeze_0", "q", "u"),
        step("Unsqueeze", "s/Unsqueeze_1", "k", "v"),
        step("MatMul", "s/MatMul_0", "uv", "l"),
    ]
    fp16 = [
        *fp32[:4],
        step("Cast", "s/Cast_0", "m", "n"),
        step("Unsqueeze", "s/Unsqueeze_0", "n", "x"),
        step("Mul", "s/Mul_0", "ex", "y"),
        step("Unsqueeze", "s/Unsqueeze_1", "q", "u"),
        step("Unsqueeze", "s/Unsqueeze_2", "y", "v"),
        step("MatMul", "s/MatMul_0", "uv", "l"),
    ]
    found = [(a.outputs, b.outputs) for a, b in paired(fp16, fp32)]
    assert all(a == b for a, b in found)
    assert {"m", "q", "c", "k", "v", "l"} <= {name for (name,), _ in found}


def test_tensor_is_needed_as_long_as_what_follows_from_it():
    class Graph:
        outputs = ("d",)
        steps = (
            step("Relu", "1", "a", "b"),
            step("Cast", "", "b", "c"),
            step("Neg", "2", "a", "x"),
            step("Add", "3", "cx", "d"),
        )

    steps = [s for s in Graph.steps if s.op != "Cast"]
    uses = last_uses(Graph, steps)
    assert uses["b"] == 2, "the cast of it is needed by the last"
    assert uses["x"] == 2
    assert uses["d"] > 2
    assert uses["a"] == 1


class Chain:
    """A graph of one node behind the other: its tensors' names, and what they hold."""

    def __init__(self, names: str, *held: float) -> None:
        self.steps = [step("Relu", x, a, x) for a, x in itertools.pairwise(names)]
        self.outputs = (names[-1],)
        self.held = dict(zip(names[1:], held, strict=True))

    def run(self, feeds: Arrays, names: Sequence[str], inner: Arrays | None = None) -> Arrays:
        return {n: feeds[self.steps[0].inputs[0]] * np.float32(self.held[n]) for n in names}


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("held", "found"),
    [
        ((1, 1, 1, 1), None),
        ((2, 1, 1, 1), "b"),
        ((1, 2, 1, 1), "c"),
        ((2, 2, 1, 1), "b"),
        ((1, 1, 2, 2), "d"),
        ((1, 1, 1, 2), "e"),
        ((2, 2, 2, 2), "b"),
    ],
)
def test_first_of_a_chain_is_found_even_where_it_fades(held: tuple[float, ...], found: str | None):
    """It is named as in the graph under test, whatever the other one calls it."""
    tested, truth = Chain("abcde", *held), Chain("vwxyz", 1, 1, 1, 1)
    given = {"a": ONE}, {"v": ONE}
    answer = Localizer(tested, truth).first(*given)
    assert (answer and (answer[0].name, answer[1])) == (found and (found, found))


def test_what_a_half_precision_may_round_is_no_difference():
    tested, truth = Chain("abc", 1.005, 1.005), Chain("abc", 1, 1)
    assert Localizer(tested, truth, "fp16").first({"a": ONE}) is None
    assert Localizer(tested, truth).first({"a": ONE}) is not None


def test_graphs_without_a_node_in_common_have_none_to_blame():
    assert Localizer(Chain("a"), Chain("b")).first({"a": ONE}) is None


def test_difference_of_numbers_bools_and_stand_ins():
    near = np.array([1.0, -3.4e38, np.inf, np.nan], np.float32)
    assert not difference(near, near.copy(), "fp32").counts
    assert not difference(near * np.float32(1 + 1e-6), near, "fp32").counts
    off = near.copy()
    off[0] = 1.01
    assert difference(off, near, "fp32").counts, "a mask's stand-in is no scale"
    assert not difference(off, near, "bf16").counts
    assert difference(np.array([True]), np.array([False]), "bf16").error == 1.0
    assert difference(np.zeros(2), np.zeros(3), "fp32").counts
    assert not difference(np.zeros(0), np.zeros(0), "fp32").counts
    nan = np.array([np.nan], np.float32)
    assert difference(nan, np.ones(1, np.float32), "fp32").error == np.inf
    assert difference(np.array([True] * 3), np.array([False] * 3), "fp32").error == 3.0


def test_an_element_may_be_off_by_a_share_of_itself_and_of_the_largest():
    """So it is the one farthest beyond its own bound that tells, not the largest difference."""
    expected, share = np.array([100.0, 0.0]), 100 * INSIDE["fp32"]
    off = share * np.array([[1.5, 0.0], [0.0, 0.9], [1.5, 1.2]])
    assert not difference(expected + off[0], expected, "fp32").counts
    assert not difference(expected + off[1], expected, "fp32").counts
    found = difference(expected + off[2], expected, "fp32")
    assert found.counts
    assert found.error == pytest.approx(1.2 * share)


def test_bf16_graph_is_searched_in_rounded_fp32(exported: Exported, tmp_path: Path):
    """ONNX Runtime has no bf16 products on the CPU; the node is found all the same."""
    made = exported("sim")
    model = build_model(made.spec, made.state, precision="bf16")
    save_models({"decode": export_graph(DecodeGraph(model))}, tmp_path)
    path = tmp_path / "decode.onnx"
    truth = GraphProbe(made.folder / "decode.onnx")
    long = max(range(len(made.cases)), key=lambda n: made.cases[n].case.cached)
    given = feeds(made, long)[1]
    assert Localizer(GraphProbe(path, precision="bf16"), truth, "bf16").first(given) is None
    wrong = onnx.load(path)
    negated(wrong, "model.dnn.first.long.weight")
    onnx.save(wrong, path)
    found = Localizer(GraphProbe(path, precision="bf16"), truth, "bf16").first(given)
    assert found is not None
    assert found[0].name == user(wrong, "model.dnn.first.long.weight")

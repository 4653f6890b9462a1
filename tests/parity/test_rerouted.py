"""A flip that the gate excuses is not what a graph is blamed for: what is wrong behind it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from ckv_testing import hstu_models
from ckv_testing.bundles import manifest_of
from ckv_testing.exports import Export
from ckv_testing.hstu import SPEC, exported_hstu
from onnx import numpy_helper

from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.model.registry import build_reference
from ckv_export.parity.expected import record
from ckv_export.parity.fault import Believed, localize
from ckv_export.parity.gate import RuntimeResult, judge
from ckv_export.parity.inputs import CaseSize, generate_case
from ckv_export.parity.localize import Divergence
from ckv_export.parity.rerouted import excused_logits
from ckv_export.parity.tolerances import routing_of, selection_of
from ckv_export.runtimes.base import Arrays

pytestmark = pytest.mark.usefixtures("one_thread")

Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The session's HSTU, and a case of many events that decode routes."""
    folder = exported_hstu(tmp_path_factory.getbasetemp())
    state = load_checkpoint(folder / "hstu.pt").state
    case = generate_case(SPEC, CaseSize("many", 32, 8, 8, 5, "full"), np.random.default_rng(0))
    return Export(SPEC, state, folder, record(build_reference(SPEC, state), [case]), 0)


def roughened(weight: np.ndarray) -> np.ndarray:
    """No farther off than half precisions are; it flips near-ties of the layer above."""
    rng = np.random.default_rng(0)
    return (weight * (1 + rng.uniform(-0.02, 0.02, weight.shape))).astype(weight.dtype)


def changed(made: Export, folder: Path, changes: Mapping[str, Change]) -> RuntimeResult:
    """The gate's verdict, in bf16's terms, on graphs with some of decode's weights changed."""
    for name in ("prefill", "decode"):
        model = onnx.load(made.folder / f"{name}.onnx")
        for tensor in model.graph.initializer if name == "decode" else ():
            if tensor.name in changes:
                array = changes[tensor.name](numpy_helper.to_array(tensor))
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(model, folder / f"{name}.onnx")
    return judge(made.spec, *made.runners(folder), made.cases, "bf16")


ROUGH: Mapping[str, Change] = {"model.layers.0.output.weight": roughened}


def excused(outcome: RuntimeResult) -> int:
    return sum(r.explained for r in outcome.results if r.tensor.endswith("_index"))


def located(made: Export, folder: Path, outcome: RuntimeResult) -> Divergence | str:
    believed = Believed(made.folder, "the fp32 graph", {})
    return localize(folder, manifest_of(made, "bf16"), outcome, believed, None)


def test_a_fault_behind_excused_flips_is_found(made: Export, tmp_path: Path):
    weight = "model.dnn.first.target.weight"
    outcome = changed(made, tmp_path, {**ROUGH, weight: np.negative})
    assert excused(outcome) > 0
    assert outcome.first_failure is not None
    found = located(made, tmp_path, outcome)
    assert isinstance(found, Divergence)
    model = onnx.load(made.folder / "decode.onnx")
    (user,) = [n.name for n in model.graph.node if weight in n.input]
    assert found.node == f"MatMul {user}"


# -- the logits, layer by layer

LAYERED = hstu_models.make_spec("two layers")
ROWS = {side: LAYERED.attention.pool_rows(side) for side in "kv"}


class Graph:
    """Router logits of two layers [1, 3, rows + 1]: how far the last row leads before the first.

    Beyond the rows of the pool stands a copy of the last, as in a padded router.
    """

    def __init__(self, **leads: Sequence[float]) -> None:
        self.held = {}
        for name in ("k0", "k1", "v0", "v1"):
            rows = ROWS[name[0]]
            logits = np.full((1, 3, rows + 1), -1, np.float32)
            logits[..., 0] = 0
            logits[0, :, rows - 1 :] = np.array(leads.get(name, (1, 1, 1)))[:, None]
            self.held[name] = logits
        self.given: list[set[str]] = []

    def router_logits(self, side: str) -> dict[int, str]:
        return {int(name[1]): name for name in self.held if name.startswith(side)}

    def run(self, feeds: Arrays, names: Sequence[str], inner: Arrays | None = None) -> Arrays:
        self.given.append(set(inner or {}))
        return {name: self.held[name] for name in names}


def rerouted(tested: Graph, truth: Graph, precision: str = "bf16", candidates: int = 0) -> Arrays:
    return excused_logits(tested, truth, {}, {}, LAYERED, precision, candidates)


@pytest.mark.parametrize(
    ("layer", "precision"), [(0, "bf16"), (1, "bf16"), (1, "fp16"), (1, "fp32")]
)
def test_only_near_ties_are_led_the_other_way(layer: int, precision: str):
    """One token far from a tie, one near it, and one as near that did not flip."""
    margin, name = routing_of(layer, precision).margin, f"v{layer}"
    truth = Graph(**{name: (1.5 * margin, margin / 2, margin / 2)})
    tested = Graph(**{name: (-1, -1, margin)})
    found = rerouted(tested, truth, precision)
    assert set(found) == {name}
    expected = truth.held[name].copy()
    expected[:, 1] = tested.held[name][:, 1]
    np.testing.assert_array_equal(found[name], expected)


def test_a_layer_is_judged_behind_what_was_excused_below_it():
    truth, tested = Graph(k0=(1e-6, 1, 1), v1=(1e-6, 1, 1)), Graph(k0=(-1, 1, 1), v1=(-1, 1, 1))
    assert set(rerouted(tested, truth)) == {"k0", "v1"}
    assert truth.given == [set(), {"k0"}]


def test_candidates_are_excused_as_the_gate_excuses_them():
    """The last two of three tokens: their scores are excused for less."""
    margin = selection_of(2, "bf16")
    assert margin < routing_of(1, "bf16").margin
    truth, tested = Graph(k1=(1.5 * margin, 1.5 * margin, margin / 2)), Graph(k1=(-1, -1, -1))
    led = rerouted(tested, truth, candidates=2)["k1"].argmax(-1) == 0
    np.testing.assert_array_equal(led, [[True, False, True]])


def test_unknown_or_other_logits_excuse_nothing():
    truth, tested = Graph(k1=(1e-6, 1, 1)), Graph(k1=(-1, 1, 1))
    assert rerouted(tested, truth)
    tested.held["k1"] = tested.held["k1"][..., :-1]
    assert not rerouted(tested, truth)
    del tested.held["k1"]
    assert not rerouted(tested, truth)


def test_a_layer_whose_rows_are_looked_up_is_left_alone():
    truth, tested = Graph(k0=(1e-6, 1, 1), k1=(1e-6, 1, 1)), Graph(k0=(-1, 1, 1), k1=(-1, 1, 1))
    del tested.held["k0"], tested.held["v0"]
    assert set(rerouted(tested, truth)) == {"k1"}

"""The gate's own cases show faults of the split model that no weight of it gives away."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ckv_testing import hstu_models
from ckv_testing.draw import make_spec

from ckv_export.contract import AttentionSpec, FeatureSpec, ModelSpec
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model import eta, hstu, links, ops
from ckv_export.model.registry import build_model, build_reference
from ckv_export.parity.expected import record
from ckv_export.parity.gate import RuntimeResult, judge
from ckv_export.parity.inputs import generate
from ckv_export.runtimes.torch import TorchRunner

pytestmark = pytest.mark.usefixtures("one_thread")

# As in the published models, an item has an id and an image.
ITEM = (
    FeatureSpec("item_id", "item", "categorical", 6, vocab_size=300),
    FeatureSpec("image", "item", "vector", 6, length=8, projected=True),
)
ATTENTION = AttentionSpec(16, 2, 2, 1, 30, 40)
TIMED = hstu_models.make_spec("two layers, times")


def spec_of(kind: str) -> ModelSpec:
    if kind == "hstu":
        return TIMED
    return make_spec(kind, features=ITEM, attention=ATTENTION, window=9, topk=6)


def state_of(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """Gaussian tensors, so that nothing ties by chance; padding is zero, as it is in training."""
    free = spec.max_len if spec.kind == "hstu" else 8
    state = hstu_models.draw(spec, np.random.default_rng(1), free)
    for name, tensor in state.items():
        if tensor.ndim > 1:
            tensor /= tensor.shape[-1] ** 0.5
        if name.endswith(".table"):
            tensor[0] = 0.0
    return {name: tensor.float() for name, tensor in state.items()}


def outcome_of(spec: ModelSpec, state, built_from=None) -> RuntimeResult:
    """The gate as an export runs it, the split model perhaps of other tensors."""
    cases = record(build_reference(spec, state), generate(spec, 0))
    model = build_model(spec, built_from or state)
    graphs = PrefillGraph(model), DecodeGraph(model)
    return judge(spec, *(TorchRunner(graph, graph.io) for graph in graphs), cases)


@pytest.mark.parametrize("kind", ["sim", "eta", "sdim", "twin", "hstu"])
def test_a_sound_model_passes(kind: str):
    spec = spec_of(kind)
    outcome = outcome_of(spec, state_of(spec))
    assert outcome.passed, outcome.first_failure


def last_of_the_best(hits: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(hits.shape[-1], dtype=torch.int32)
    return torch.where(hits, positions, -1).amax(-1).to(torch.int32)


def all_tied(scores: torch.Tensor, count: int) -> torch.Tensor:
    kept = min(count, scores.shape[-1])
    return scores >= scores.topk(kept, dim=-1).values.amin(-1, keepdim=True) if kept else scores > 0


def highest_tied(scores: torch.Tensor, count: int) -> torch.Tensor:
    return _select_largest(scores.flip(-1), count).flip(-1)


def one_at_zero(self: eta.Eta, events: torch.Tensor) -> torch.Tensor:
    return events @ self.rotations >= 0


def no_longer_than_half_a_year(seconds: torch.Tensor) -> torch.Tensor:
    return _log2_bucket(seconds.clamp(max=2**24 - 1))


_select_largest, _log2_bucket = ops.select_largest, links.log2_bucket

FAULTS = {
    "the last of equal rows": ("sim", ops, "first_position", last_of_the_best),
    "too many events at a tie": ("sim", ops, "select_largest", all_tied),
    "too many events at a tie of a head": ("twin", ops, "select_largest", all_tied),
    "the last events of a tie": ("eta", ops, "select_largest", highest_tied),
    "padding before real events": ("sim", ops, "select_largest", highest_tied),
    "a mask that the search forgets": ("sim", ops, "masked_keys", lambda key, mask: key),
    "a code of ones for zeros": ("eta", eta.Eta, "event_key", one_at_zero),
    "years that count as months": ("hstu", hstu, "log2_bucket", no_longer_than_half_a_year),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch):
    kind, place, name, wrong = FAULTS[fault]
    monkeypatch.setattr(place, name, wrong)
    spec = spec_of(kind)
    assert not outcome_of(spec, state_of(spec)).passed


def test_sdim_that_forgets_the_mask(monkeypatch: pytest.MonkeyPatch):
    """What stands under a mask is not always padding."""
    spec = spec_of("sdim")
    model_class: Callable = type(build_model(spec, state_of(spec)))
    usual = model_class.long_branch

    def wrong(self, events, key, mask, target):
        return usual(self, events, key, torch.ones_like(mask), target)

    monkeypatch.setattr(model_class, "long_branch", wrong)
    assert not outcome_of(spec, state_of(spec)).passed


def test_the_bias_of_the_farthest_events():
    """One for each distance that the model is trained for; the last is also that of any beyond."""
    state, name = state_of(TIMED), "attention.0.position_bias"
    assert len(state[name]) == TIMED.max_len
    other = state[name].clone()
    other[-1] += 1.0
    assert not outcome_of(TIMED, state, {**state, name: other}).passed

"""Half precision reaches the large products, and nothing that routes, selects or is cached."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ckv_testing.draw import KINDS, ODD_DNN, draw_cases, draw_state, make_spec
from ckv_testing.hstu import SPEC as HSTU
from torch import nn

from ckv_export.contract import PRECISIONS, AttentionSpec, DnnSpec, ModelSpec
from ckv_export.errors import SpecError
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.base import CollectiveModel
from ckv_export.model.precision import DTYPES, Reducible
from ckv_export.model.registry import build_model, build_reference
from ckv_export.parity.expected import record
from ckv_export.runtimes.torch import TorchRunner
from ckv_export.training import initial_state

pytestmark = pytest.mark.usefixtures("one_thread")

HALVES = ("fp16", "bf16")
ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}

KEPT = (  # substrings of parameters that stay fp32 in every model
    *("events.", ".router.", ".k.user.", ".v.user.", "norm", "_bias", "input."),
    *("gsu_", "rotations", "buckets", "long_query", "long_key"),
)


def model_of(kind: str, precision: str, rng: np.random.Generator) -> CollectiveModel:
    if kind == "hstu":
        return build_model(HSTU, initial_state(HSTU, 0), precision=precision)
    spec = make_spec(kind, dnn=ODD_DNN)
    return build_model(spec, draw_state(spec, rng), precision=precision)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("kind", [*KINDS, "hstu"])
def test_parameters_of_each_kind(kind: str, precision: str, rng: np.random.Generator):
    model = model_of(kind, precision, rng)
    last = f"dnn.rest.{len(model.dnn.rest) - 1}."
    for name, parameter in model.named_parameters():
        kept = any(part in name for part in KEPT) or name.startswith(last)
        expected = torch.float32 if kept else DTYPES[precision]
        if parameter.is_floating_point():
            assert parameter.dtype == expected, name
    reduced = {p.dtype for p in model.parameters()}
    assert DTYPES[precision] in reduced


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cached_does_not_depend_on_precision(kind: str, rng: np.random.Generator):
    spec = make_spec(kind)
    state = draw_state(spec, rng)
    case = draw_cases(spec, int(rng.integers(1000)))[-1].inputs
    outputs = []
    for precision in PRECISIONS:
        graph = PrefillGraph(build_model(spec, state, precision=precision))
        feeds = {t.name: case[t.name.replace("event_", "history_", 1)] for t in graph.io.inputs}
        with TorchRunner(graph, graph.io) as runner:
            outputs.append(runner.infer(feeds))
    for other in outputs[1:]:
        for name, array in outputs[0].items():
            np.testing.assert_array_equal(other[name], array)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_a_few_roundings_from_the_reference(
    kind: str, precision: str, rng: np.random.Generator
):
    """And not as near as fp32 is: then nothing would have been reduced."""
    spec = make_spec(kind, "rich, fuxictr mask, 2 heads")
    state = draw_state(spec, rng)
    graph = DecodeGraph(build_model(spec, state, precision=precision))
    prefill = PrefillGraph(graph.model)
    worst = 0.0
    for case in record(build_reference(spec, state), draw_cases(spec, int(rng.integers(1000)))):
        cache = {n: a for n, a in case.outputs.items() if n.startswith("cache_")}
        first = case.case.cached - spec.cached_events(case.case.cached)
        cache = {n: np.ascontiguousarray(a[:, :, first:]) for n, a in cache.items()}
        given = case.case.inputs | cache
        with TorchRunner(graph, graph.io) as runner:
            got = runner.infer({t.name: given[t.name] for t in graph.io.inputs})
        assert got["score"].dtype == np.float32
        worst = max(worst, float(np.abs(got["score"] - case.outputs["score"]).max(initial=0)))
    assert prefill.io.outputs == PrefillGraph(build_model(spec, state)).io.outputs
    assert ROUNDOFF[precision] / 200 < worst < 4 * ROUNDOFF[precision]


def test_fp32_is_what_it_was(rng: np.random.Generator):
    model = model_of("sim", "fp32", rng)
    assert model.precision == "fp32"
    assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {torch.float32}


def test_network_without_hidden_layers_is_all_last_layer(rng: np.random.Generator):
    spec = make_spec("sim", dnn=DnnSpec((), (), False))
    model = build_model(spec, draw_state(spec, rng), precision="fp16")
    assert {p.dtype for p in model.dnn.parameters()} == {torch.float32}


@pytest.mark.parametrize("size", [65504.0, 65520.0, -1e6, np.inf])
def test_weight_beyond_fp16_is_refused_by_name(size: float, rng: np.random.Generator):
    spec = make_spec("sim")
    state = draw_state(spec, rng)
    state["attention.0.q.weight"][1, 2] = size
    build_model(spec, state, precision="bf16")
    if size == 65504.0 or np.isinf(size):  # the largest half; an infinity was one before
        build_model(spec, state, precision="fp16")
        return
    with pytest.raises(SpecError, match=r"attention\.query: a weight of .* beyond .* 65504.*bf16"):
        build_model(spec, state, precision="fp16")


@pytest.mark.parametrize(
    ("large", "says"),
    [
        (
            ("long.q", "long.k"),
            r"search\.query, .* of long\.q\.weight and long\.k\.weight",
        ),
        (("long.o", "long.v"), r"dnn\.first\.long, .* dnn\.0\.weight and .* the long branch"),
    ],
)
def test_product_beyond_fp16_is_refused_by_the_names_of_its_factors(
    large: tuple[str, str], says: str, rng: np.random.Generator
):
    """With one head; none of the weights is beyond it."""
    spec = make_spec("sim", attention=AttentionSpec(16, 1, 2, 1, 10, 13))
    state = draw_state(spec, rng)
    for name in large:
        state[f"{name}.weight"] = 1000 * state[f"{name}.weight"]
        assert state[f"{name}.weight"].abs().max() < 65504
    build_model(spec, state, precision="bf16")
    with pytest.raises(SpecError, match=f"{says}.*: a weight of .* beyond .* 65504.*bf16"):
        build_model(spec, state, precision="fp16")


def test_unknown_precision_lists_those_known(rng: np.random.Generator):
    with pytest.raises(SpecError, match="precision must be one of fp32, fp16, bf16, got 'fp8'"):
        model_of("sim", "fp8", rng)


def test_every_part_with_weights_to_reduce_is_reducible(rng: np.random.Generator):
    """A new module with half-precision weights is found by the walk, not by a list."""
    model = model_of("twin", "fp16", rng)
    owners = {name for name, m in model.named_modules() if isinstance(m, Reducible)}
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.float16:
            assert name.rpartition(".")[0] in owners


def test_reducing_leaves_the_checkpoint_alone(rng: np.random.Generator):
    spec: ModelSpec = dataclasses.replace(make_spec("eta"), dnn=ODD_DNN)
    state = draw_state(spec, rng)
    before = {name: tensor.clone() for name, tensor in state.items()}
    module: nn.Module = build_model(spec, state, precision="bf16")
    assert any(p.dtype == torch.bfloat16 for p in module.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())

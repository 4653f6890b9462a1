"""HSTU models of every form, drawn in float64, and the two graphs of one fed in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckv_export.contract import (
    FEATURES,
    AttentionSpec,
    CacheSpec,
    DnnSpec,
    EventForm,
    FeatureSpec,
    ModelSpec,
)
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.events import EventEmbedding
from ckv_export.model.parameters import expected_shapes
from ckv_export.model.registry import build_model
from ckv_export.runtimes.base import Arrays
from ckv_testing.draw import DNN, ODD_DNN, PLAIN, RICH

# All of it runs in float64, so that rounding neither flips a row nor hides what is wrong.
CLOSE = 1e-9

TIME = FeatureSpec("time", "item", "timestamp", 0)
ONE_ID = (FeatureSpec("item_id", "item", "categorical", 5, vocab_size=40),)

VARIANTS: Mapping[str, dict[str, Any]] = {
    "one layer, one head, ids alone": {
        "num_layers": 1,
        "features": ONE_ID,
        "attention": AttentionSpec(4, 1, 1, 2, 5, 3),
    },
    "two layers": {},
    "two layers, times": {"features": (*PLAIN, TIME)},
    "three layers, four heads, every feature, times": {
        "num_layers": 3,
        "features": (TIME, *RICH),
        "attention": AttentionSpec(8, 4, 2, 3, 6, 7),
        "dnn": ODD_DNN,
    },
    "K not shared, biases, times": {
        "features": (PLAIN[0], TIME, PLAIN[1]),
        "attention": AttentionSpec(6, 2, 6, 1, 0, 4, user_bias=True, router_bias=True),
    },
    "V not shared, neither silu nor scale": {
        "attention": AttentionSpec(6, 3, 2, 6, 4, 0, use_silu=False, use_scale=False),
        "dnn": DnnSpec((), (), batch_norm=True, sigmoid=False),
    },
}


def make_spec(variant: str) -> ModelSpec:
    fields: dict[str, Any] = {
        "features": PLAIN,
        "attention": AttentionSpec(8, 2, 2, 1, 6, 7),
        "dnn": DNN,
        "max_len": 40,
        "num_layers": 2,
    }
    return ModelSpec("hstu", **fields | VARIANTS[variant])


def draw(spec: ModelSpec, rng: np.random.Generator, free: int = 6) -> dict[str, Tensor]:
    """Every tensor Gaussian, in float64; tables of biases with `free` entries."""
    state = {}
    for name, shape in expected_shapes(spec).items():
        sizes = [free if size == -1 else size for size in shape]
        if name.endswith(".activation.weight"):
            sizes = [1]
        drawn = torch.from_numpy(rng.standard_normal(sizes))
        state[name] = drawn.abs() + 0.5 if name.endswith(".var") else 0.7 * drawn
    return state


def with_logits(spec: ModelSpec) -> ModelSpec:
    """The same model without a sigmoid, which may leave nothing to see of a difference."""
    return dataclasses.replace(spec, dnn=dataclasses.replace(spec.dnn, sigmoid=False))


class Split:
    """The two graphs of a drawn model, fed in float64."""

    def __init__(
        self, spec: ModelSpec, state: Mapping[str, Tensor], form: EventForm = FEATURES
    ) -> None:
        self.spec = spec
        self.model = build_model(spec, state, EventEmbedding(spec, state, form))
        self.prefill, self.decode = PrefillGraph(self.model), DecodeGraph(self.model)

    def outputs(self, inputs: Arrays) -> Arrays:
        """Prefill all of the history, decode: named and shaped as `SlowHstu.outputs`."""
        users = len(inputs["history_mask"])
        past = {
            t.name: np.zeros(t.shape({"B": users, "K": 0}), t.dtype)
            for t in self.prefill.io.inputs
            if t.name.startswith("past_")
        }
        events = {
            name.replace("history_", "event_", 1): a
            for name, a in inputs.items()
            if name.startswith("history_")
        }
        cache = run(self.prefill, past | events)
        new = run(self.decode, inputs | cache)
        joined = {
            suffix: np.concatenate([cache[f"cache_{suffix}"], new[f"append_{suffix}"]], axis=2)
            for suffix, _, _ in CacheSpec.of(self.spec).tensors
        }
        return joined | {"score": new["score"]}


def run(graph: PrefillGraph | DecodeGraph, feeds: Arrays) -> Arrays:
    given = []
    for tensor in graph.io.inputs:
        array = torch.from_numpy(np.ascontiguousarray(feeds[tensor.name]))
        given.append(array.double() if tensor.dtype == "float32" else array)
    with torch.inference_mode():
        outputs = graph(*given)
    return {t.name: o.numpy() for t, o in zip(graph.io.outputs, outputs, strict=True)}


def assert_same(got: Arrays, expected: Arrays) -> None:
    """Row numbers exactly, numbers to what float64 leaves."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        bound = 0.0 if name.endswith("_index") else CLOSE
        np.testing.assert_allclose(got[name], array, rtol=bound, atol=bound, err_msg=name)

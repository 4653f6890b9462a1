"""HSTU, split and as reference, against loops in float64; what its specification refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from ckv_testing.hstu_models import ONE_ID, VARIANTS, Split, assert_same, draw, make_spec
from ckv_testing.slow_hstu import SlowHstu
from torch import Tensor

from ckv_export.contract import CacheSpec, EventForm, ModelSpec
from ckv_export.errors import SpecError
from ckv_export.model import hstu
from ckv_export.model.parameters import expected_shapes
from ckv_export.model.registry import build_reference
from ckv_export.parity.inputs import CaseSize, Fill, generate_case
from ckv_export.runtimes.base import Arrays

pytestmark = pytest.mark.usefixtures("one_thread")


def reference_outputs(spec: ModelSpec, state: Mapping[str, Tensor], inputs: Arrays) -> Arrays:
    """Of the reference: named and shaped as `SlowHstu.outputs`."""
    given = {name: torch.from_numpy(a) for name, a in inputs.items()}
    names = [*(f.name for f in spec.item_features), "mask"]
    history = {n: torch.cat([given[f"{g}_{n}"] for g in ("history", "append")], 1) for n in names}
    mask = history.pop("mask")
    asked = [
        {n.removeprefix(p): t for n, t in given.items() if n.startswith(p)}
        for p in ("candidate_", "user_")
    ]
    reference = build_reference(spec, state)
    layers = reference.cache(history, mask)
    found = {"score": reference.score(history, mask, *asked).numpy()}
    for suffix, _, width in CacheSpec.of(spec).tensors:
        kind, side = ("index" if width is None else "user"), suffix[0]
        found[suffix] = torch.stack([getattr(e, kind)[side] for e in layers], dim=1).numpy()
    return found


def requests(spec: ModelSpec, rng: np.random.Generator) -> list[Arrays]:
    """Every kind of history and mask; ragged, with holes and with nothing real among them."""
    sizes: list[tuple[int, int, int, int, Fill]] = [
        (2, 0, 0, 1, "full"),
        (2, 0, 1, 3, "full"),
        (1, 1, 0, 1, "full"),
        (2, 1, 2, 2, "ragged"),
        (1, 13, 0, 7, "full"),
        (3, 9, 3, 2, "ragged"),
        (3, 8, 4, 2, "holes"),
        (2, 4, 2, 2, "masked"),
        (2, 6, 1, 2, "repeats"),
    ]
    return [generate_case(spec, CaseSize(s[4], *s), rng).inputs for s in sizes]


@pytest.mark.parametrize("variant", VARIANTS)
def test_split_model_and_reference_compute_what_the_loops_do(
    variant: str, rng: np.random.Generator
):
    spec = make_spec(variant)
    # Tables of biases shorter than the histories, so that distances run beyond them.
    state = draw(spec, rng, free=int(rng.integers(1, 12)))
    slow, split = SlowHstu(spec, state), Split(spec, state)
    for inputs in requests(spec, rng):
        expected = slow.outputs(inputs)
        assert_same(split.outputs(inputs), expected)
        assert_same(reference_outputs(spec, state, inputs), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_that_are_looked_up_are_those_that_a_router_finds(
    variant: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    """Of every item, whatever pieces the catalogue is routed in."""
    times = tuple(f for f in make_spec(variant).features if f.kind == "timestamp")
    spec = dataclasses.replace(make_spec(variant), features=(*ONE_ID, *times))
    state = draw(spec, rng)
    monkeypatch.setattr("ckv_export.model.events._CHUNK", int(rng.integers(1, 50)))
    split = Split(spec, state, EventForm(item_key="item_id"))
    assert isinstance(split.model, hstu.Hstu)
    split.model.route_items(ONE_ID[0].vocab_size)
    # The first layer's routers have no part in it any more.
    for side in ("k", "v"):
        if spec.attention.shared(side):
            del getattr(split.model.attentions[0], side).router
    slow = SlowHstu(spec, state)
    for inputs in requests(spec, rng):
        assert_same(split.outputs(inputs), slow.outputs(inputs))


# -- refusals


def test_a_window_is_refused(rng: np.random.Generator):
    spec = dataclasses.replace(make_spec("two layers"), window=5)
    with pytest.raises(SpecError, match="hstu attends to the whole history, got window 5"):
        expected_shapes(spec)


def test_options_are_refused():
    spec = dataclasses.replace(make_spec("two layers"), options={"topk": 3})
    with pytest.raises(SpecError, match="hstu: unknown option 'topk'"):
        expected_shapes(spec)

"""Weights carried to the other side of a product, against the two products in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ckv_testing.draw import draw_state, make_spec

from ckv_export.contract import AttentionSpec
from ckv_export.errors import SpecError
from ckv_export.model.folds import Unprojected, carried_over, output_weight
from ckv_export.model.registry import build_model


@pytest.mark.parametrize(("d", "x", "e"), [(1, 1, 1), (5, 3, 4), (4, 6, 4), (3, 2, 7)])
def test_carried_weight_gives_the_same_products(d: int, x: int, e: int, rng: np.random.Generator):
    asked, found = (rng.standard_normal((d, n)).astype(np.float32) for n in (x, e))
    weight = carried_over(torch.from_numpy(asked), torch.from_numpy(found), "a and b")
    assert (weight.dtype, tuple(weight.shape)) == (torch.float32, (e, x))
    target, event = rng.standard_normal((8, x)), rng.standard_normal((8, e))
    expected = [(asked @ t) @ (found @ v) for t, v in zip(target, event, strict=True)]
    got = [(weight.double().numpy() @ t) @ v for t, v in zip(target, event, strict=True)]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "large", "says"),
    [
        ("sim", "long.q long.k", r"long\.q\.weight and long\.k\.weight"),
        ("twin", "long.q long.k", r"long\.q\.weight and long\.k\.weight"),
        ("sim", "long.gsu_target long.gsu_event", r"long\.gsu_target\.weight and long\.gsu_event"),
        ("eta", "long.o long.v", r"dnn\.0\.weight and the output weights of the long branch"),
        ("sdim", "attention.0.o dnn.0", r"dnn\.0\.weight and .* of the short branch"),
    ],
)
def test_product_beyond_its_factors_range_is_refused(
    kind: str, large: str, says: str, rng: np.random.Generator
):
    """An infinite weight would make every score NaN, whoever has switched the gate off."""
    spec = make_spec(kind, attention=AttentionSpec(16, 1, 2, 1, 10, 13))
    state = draw_state(spec, rng)
    for name in large.split():
        state[f"{name}.weight"] = 1e30 * state[f"{name}.weight"]
        assert state[f"{name}.weight"].isfinite().all()
    with pytest.raises(SpecError, match=f"product of {says}.* beyond the range of torch.float32"):
        build_model(spec, state)


@pytest.mark.parametrize("heads", [1, 2])
def test_output_weight_holds_w_v_where_events_are_their_own_values(
    heads: int, rng: np.random.Generator
):
    spec = make_spec("sim", attention=AttentionSpec(16, heads, 2, 1, 10, 13))
    state = draw_state(spec, rng)
    outward, value = (state[f"long.{n}.weight"].double() for n in "ov")
    expected = outward @ value if heads == 1 else outward
    np.testing.assert_allclose(output_weight(spec, state), expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["sim", "eta", "twin"])
def test_no_weight_is_left_for_each_event(kind: str, rng: np.random.Generator):
    """Only the query's side of the long branch has weights, and those of hashing."""
    spec = make_spec(kind, attention=AttentionSpec(16, 1, 2, 1, 10, 13))
    names = {name for name, _ in build_model(spec, draw_state(spec, rng)).named_parameters()}
    long = {n for n in names if not n.startswith(("attention.", "dnn.", "events."))}
    assert (
        long
        == {
            "sim": {"gsu_target.weight", "search.query.weight"},
            "eta": {"rotations", "search.query.weight"},
            "twin": {"long_query.weight"},
        }[kind]
    )


def test_unprojected_events_take_the_dtype_they_are_reduced_to(rng: np.random.Generator):
    module, x = Unprojected(), torch.from_numpy(rng.standard_normal((2, 3)).astype(np.float32))
    assert module(x) is x
    module.reduce(torch.float16)
    assert module(x).dtype == torch.float16

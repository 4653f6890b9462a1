"""Which tensors belong to a model, and what is said about those that don't."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ckv_testing import hstu_models
from ckv_testing.draw import KINDS, PLAIN, draw_state, make_spec

from ckv_export.contract import AttentionSpec, DnnSpec
from ckv_export.errors import CheckpointError, SpecError
from ckv_export.model.fingerprint import fingerprint
from ckv_export.model.parameters import check_state, expected_shapes
from ckv_export.model.registry import MODELS, build_model, model_class


def test_names_and_shapes_of_sim():
    spec = make_spec(
        "sim",
        attention=AttentionSpec(16, 4, 2, 16, 10, 0, user_bias=True, router_bias=True),
        dnn=DnnSpec((7, 5), ("prelu", "dice"), True),
    )
    norm = ("weight", "bias", "mean", "var")
    assert expected_shapes(spec) == {
        "embedding.item_id.table": (30, 6),
        "embedding.cate_id.table": (5, 4),
        "attention.0.q.weight": (16, 10),
        "attention.0.o.weight": (10, 16),
        "attention.0.k.weight": (2, 10),
        "attention.0.k.bias": (2,),
        "attention.0.k.router.weight": (10, 10),
        "attention.0.k.router.bias": (10,),
        "attention.0.k.pool": (10, 14),
        "attention.0.v.weight": (16, 10),
        "attention.0.v.bias": (16,),
        "long.gsu_target.weight": (16, 10),
        "long.gsu_event.weight": (16, 10),
        "long.q.weight": (16, 10),
        "long.k.weight": (16, 10),
        "long.v.weight": (16, 10),
        "long.o.weight": (10, 16),
        "dnn.0.weight": (7, 30),
        "dnn.0.bias": (7,),
        **{f"dnn.0.norm.{n}": (7,) for n in norm},
        "dnn.0.activation.weight": (-1,),
        "dnn.1.weight": (5, 7),
        "dnn.1.bias": (5,),
        **{f"dnn.1.norm.{n}": (5,) for n in norm},
        **{f"dnn.1.activation.{n}": (5,) for n in ("alpha", "mean", "var")},
        "dnn.2.weight": (1, 5),
        "dnn.2.bias": (1,),
    }


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("eta", {"rotations": (10, -1), "q.weight": (16, 10), "o.weight": (10, 16)}),
        ("sdim", {"rotations": (10, -1, -1)}),
        ("twin", {"q.weight": (16, 10), "k.weight": (16, 10), "v.weight": (16, 10)}),
    ],
)
def test_long_tensors_of_the_other_kinds(kind: str, expected: dict[str, tuple[int, ...]]):
    shapes = expected_shapes(make_spec(kind))
    long = {n.removeprefix("long."): s for n, s in shapes.items() if n.startswith("long.")}
    assert expected.items() <= long.items()
    assert not any("gsu" in name for name in long)
    assert (set(long) == {"rotations"}) == (kind == "sdim")


@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_state_passes(kind: str, rng: np.random.Generator):
    for variant in ("plain", "rich, fuxictr mask, 2 heads", "K not shared, biases, 4 heads"):
        spec = make_spec(kind, variant)
        check_state(spec, draw_state(spec, rng))


def refused(spec, state) -> str:
    with pytest.raises(CheckpointError) as error:
        check_state(spec, state)
    return str(error.value)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("eta", "long.rotations"),
        ("hstu", "attention.1.position_bias"),
        ("hstu", "attention.0.time_bias"),
    ],
)
def test_a_free_size_is_not_none(kind: str, name: str, rng: np.random.Generator):
    hstu = hstu_models.make_spec("two layers, times")
    spec = hstu if kind == "hstu" else make_spec(kind)
    state = hstu_models.draw(spec, rng)
    message = refused(spec, state | {name: state[name][..., :0]})
    assert f"{name!r} must be" in message
    assert "any above 0" in message


def test_missing_tensor_is_named_with_the_nearest(rng: np.random.Generator):
    spec = make_spec("sim")
    state = draw_state(spec, rng)
    state["long.gsu_targets.weight"] = state.pop("long.gsu_target.weight")
    message = refused(spec, state)
    assert "'long.gsu_target.weight' is missing" in message
    assert "did you mean 'long.gsu_targets.weight'?" in message


def test_every_single_tensor_is_needed(rng: np.random.Generator):
    spec = make_spec("twin", "rich, fuxictr mask, 2 heads")
    state = draw_state(spec, rng)
    for name in state:
        message = refused(spec, {n: t for n, t in state.items() if n != name})
        assert f"{name!r} is missing" in message


def test_unexpected_tensors_are_named_with_the_nearest(rng: np.random.Generator):
    spec = make_spec("sim")
    state = draw_state(spec, rng)
    extra = {"long.o.bias": torch.zeros(10), **{f"z{i}": torch.zeros(1) for i in range(6)}}
    message = refused(spec, state | extra)
    assert "7 of the tensors have no place in this model: 'long.o.bias', 'z0'" in message
    assert "..." in message
    assert "'z5'" not in message
    assert "'long.o.weight'" in message or "'long.v.weight'" in message


def test_wrong_shape_is_named_with_both(rng: np.random.Generator):
    spec = make_spec("eta")
    state = draw_state(spec, rng)
    message = refused(spec, state | {"attention.0.q.weight": torch.zeros(10, 16)})
    for words in ("'attention.0.q.weight'", "16", "10", "item features together 10"):
        assert words in message
    assert "'long.rotations'" in refused(spec, state | {"long.rotations": torch.zeros(10)})
    assert "'long.rotations'" in refused(spec, state | {"long.rotations": torch.zeros(9, 6)})
    check_state(spec, state | {"long.rotations": torch.zeros(10, 31)})


def test_prelu_has_one_slope_or_one_for_each_channel(rng: np.random.Generator):
    spec = make_spec("sim", dnn=DnnSpec((7,), ("prelu",), False))
    state = draw_state(spec, rng)
    for size in (1, 7):
        check_state(spec, state | {"dnn.0.activation.weight": torch.zeros(size)})
    assert "'dnn.0.activation.weight'" in refused(
        spec, state | {"dnn.0.activation.weight": torch.zeros(5)}
    )


@pytest.mark.parametrize("name", ["dnn.0.norm.var", "dnn.1.activation.var"])
def test_variances_are_not_negative(name: str, rng: np.random.Generator):
    spec = make_spec("sim", dnn=DnnSpec((7, 5), ("relu", "dice"), True))
    state = draw_state(spec, rng)
    state[name][3] = 0.0
    check_state(spec, state)
    state[name][3] = -0.25
    assert refused(spec, state) == (
        f"tensor {name!r} holds variances, which can't be negative, got -0.25"
    )
    with pytest.raises(CheckpointError, match=r"'mlp\.var'"):
        check_state(spec, state, {name: "mlp.var"})


def test_whole_numbers_are_no_weights(rng: np.random.Generator):
    spec = make_spec("sim")
    state = draw_state(spec, rng)
    message = refused(spec, state | {"dnn.0.bias": torch.zeros(7, dtype=torch.int64)})
    assert "tensor 'dnn.0.bias' must hold floating numbers, got torch.int64" in message


def test_message_shows_the_name_in_the_file(rng: np.random.Generator):
    spec = make_spec("sim")
    state = draw_state(spec, rng) | {"dnn.0.bias": torch.zeros(8)}
    with pytest.raises(CheckpointError, match=r"'mlp\.0\.bias'"):
        check_state(spec, state, {"dnn.0.bias": "mlp.0.bias"})


# -- kinds and options


def test_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match=r"unknown model kind 'simm'.*did you mean 'sim'\?"):
        model_class("simm")
    with pytest.raises(SpecError) as error:
        model_class("transformer")
    assert all(kind in str(error.value) for kind in MODELS)
    assert set(KINDS) <= set(MODELS)


OPTIONS = [
    ({}, "option 'topk' must be"),
    ({"topk": 0}, "option 'topk' must be .* got 0"),
    ({"topk": True}, "option 'topk' must be .* got True"),
    ({"topk": 2.0}, "option 'topk' must be .* got 2.0"),
    ({"topk": 2**31}, "option 'topk' must be below 2147483648, got 2147483648"),
    ({"topk": 2, "topkk": 3}, "unknown option 'topkk'; did you mean 'topk'"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
@pytest.mark.parametrize("kind", ["sim", "twin"])
def test_options_of_a_kind(kind: str, options: dict, message: str):
    spec = make_spec(kind)
    data = spec.to_dict() | {"options": options}
    with pytest.raises(SpecError, match=f"{kind}: .*{message}"):
        expected_shapes(type(spec).from_dict(data))


def test_boolean_options_are_booleans():
    spec = make_spec("sdim")
    for value in (1, "true", None):
        with pytest.raises(SpecError, match="option 'l2_norm' must be"):
            expected_shapes(type(spec).from_dict(spec.to_dict() | {"options": {"l2_norm": value}}))


def test_a_window_is_needed_and_one_layer():
    with pytest.raises(SpecError, match="'sim' needs a window"):
        expected_shapes(make_spec("sim", window=None))
    with pytest.raises(SpecError, match="has one layer, got num_layers 2"):
        expected_shapes(make_spec("sim", num_layers=2))


def test_unknown_activation_is_refused_before_any_tensor():
    spec = make_spec("sim", dnn=DnnSpec((3,), ("rellu",), False))
    with pytest.raises(SpecError, match="'rellu'"):
        check_state(spec, {})


def test_built_model_shares_the_memory_of_tables(rng: np.random.Generator):
    spec = make_spec("sim")
    state = draw_state(spec, rng)
    memories = {p.data_ptr() for p in build_model(spec, state).parameters()}
    for name in ("embedding.item_id.table", "embedding.cate_id.table"):
        assert state[name].data_ptr() in memories


def test_built_model_is_in_inference_mode(rng: np.random.Generator):
    spec = make_spec("sim")
    model = build_model(spec, draw_state(spec, rng))
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


# -- fingerprint


def test_fingerprint_is_that_of_the_contents(rng: np.random.Generator):
    spec = make_spec("eta", "rich, fuxictr mask, 2 heads")
    state = draw_state(spec, rng)
    expected = fingerprint(spec, state)
    assert len(expected) == 64
    assert int(expected, 16) >= 0
    assert fingerprint(spec, dict(reversed(state.items()))) == expected
    assert fingerprint(spec, {n: strided(t) for n, t in state.items()}) == expected
    data = spec.to_dict()
    shuffled = type(spec).from_dict(data | {"options": dict(reversed(data["options"].items()))})
    assert fingerprint(shuffled, state) == expected


def test_any_weight_changes_the_fingerprint(rng: np.random.Generator):
    spec = make_spec("sdim", "rich, fuxictr mask, 2 heads")
    state = draw_state(spec, rng)
    seen = {fingerprint(spec, state)}
    for name, tensor in state.items():
        other = tensor.clone()
        flat = other.view(-1)
        at = int(rng.integers(len(flat)))
        # The next number above: one bit in the last place.
        flat[at] = torch.nextafter(flat[at], torch.tensor(float("inf")))
        seen.add(fingerprint(spec, state | {name: other}))
    assert len(seen) == len(state) + 1


def test_shape_name_dtype_and_configuration_change_the_fingerprint(rng: np.random.Generator):
    spec = make_spec("sim")
    state = draw_state(spec, rng)
    pool = state["attention.0.k.pool"]
    others = [
        (spec, state | {"attention.0.k.pool": pool.reshape(pool.shape[::-1])}),
        (spec, state | {"attention.0.k.pool": pool.double()}),
        (spec, {n + "_": t for n, t in state.items()}),
        (make_spec("sim", topk=5), state),
        (make_spec("sim", mask_alignment="fuxictr"), state),
        (make_spec("sim", features=PLAIN[::-1]), state),
    ]
    seen = {fingerprint(spec, state), *(fingerprint(*other) for other in others)}
    assert len(seen) == len(others) + 1


def test_fingerprint_reads_a_minus_zero_as_its_own(rng: np.random.Generator):
    """Bytes, not values: a file with other bytes is another model."""
    spec = make_spec("sim")
    state = draw_state(spec, rng)
    bias = torch.zeros(7)
    assert fingerprint(spec, state | {"dnn.0.bias": bias}) != fingerprint(
        spec, state | {"dnn.0.bias": -bias}
    )


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, every second one in a memory twice as large."""
    return torch.stack([tensor, tensor + 1], dim=-1)[..., 0]

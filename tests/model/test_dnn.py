"""The folded scoring network against the plain one in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ckv_export.contract import DnnSpec
from ckv_export.errors import SpecError
from ckv_export.model.activations import KNOWN, activation_module, check_activation
from ckv_export.model.dnn import Block, Dice, FoldedDnn, PRelu

Floats = NDArray[np.float64]
WIDTHS = {"user": 3, "target": 2, "short": 4, "long": 5}
INNER = {"short": 6, "long": 3}  # width of attention before W_o


def draw(
    spec: DnnSpec, rng: np.random.Generator, prelu: int | None = None
) -> dict[str, torch.Tensor]:
    """Tensors ``dnn.*`` for an input of 14 columns."""
    width, state = sum(WIDTHS.values()), {}
    for i, out in enumerate([*spec.hidden, 1]):
        state[f"dnn.{i}.weight"] = rng.standard_normal((out, width)) / width**0.5
        state[f"dnn.{i}.bias"] = rng.standard_normal(out)
        width = out
    for i, (out, name) in enumerate(zip(spec.hidden, spec.activations, strict=True)):
        if spec.batch_norm:
            for part in ("weight", "bias", "mean"):
                state[f"dnn.{i}.norm.{part}"] = rng.standard_normal(out)
            state[f"dnn.{i}.norm.var"] = rng.uniform(0.01, 3.0, out)
        if name == "prelu":
            state[f"dnn.{i}.activation.weight"] = rng.standard_normal(prelu or out)
        if name == "dice":
            for part in ("alpha", "mean"):
                state[f"dnn.{i}.activation.{part}"] = rng.standard_normal(out)
            state[f"dnn.{i}.activation.var"] = rng.uniform(0.01, 3.0, out)
    return {name: torch.from_numpy(a.astype(np.float32)) for name, a in state.items()}


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


PLAIN: dict[str, Callable[[Floats], Floats]] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "identity": lambda x: x,
    "silu": lambda x: x * sigmoid(x),
    "leakyrelu": lambda x: np.where(x > 0, x, 0.01 * x),
    "gelu": lambda x: np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(),
}


def plain(spec: DnnSpec, state: dict[str, torch.Tensor], x: Floats) -> float:
    """The network without any folding, on one row."""
    s = {name: t.double().numpy() for name, t in state.items()}
    for i, name in enumerate(spec.activations):
        x = s[f"dnn.{i}.weight"] @ x + s[f"dnn.{i}.bias"]
        if spec.batch_norm:
            gamma, beta, mean, var = (
                s[f"dnn.{i}.norm.{n}"] for n in ("weight", "bias", "mean", "var")
            )
            x = (x - mean) / np.sqrt(var + 1e-5) * gamma + beta
        if name == "prelu":
            x = np.where(x > 0, x, s[f"dnn.{i}.activation.weight"] * x)
        elif name == "dice":
            mean, var, alpha = (s[f"dnn.{i}.activation.{n}"] for n in ("mean", "var", "alpha"))
            p = sigmoid((x - mean) / np.sqrt(var + 1e-9))
            x = p * x + alpha * (1 - p) * x
        else:
            x = PLAIN[name](x)
    logit = float((s[f"dnn.{len(spec.hidden)}.weight"] @ x + s[f"dnn.{len(spec.hidden)}.bias"])[0])
    return 1 / (1 + math.exp(-logit)) if spec.sigmoid else logit


SPECS = {
    "no hidden layer": DnnSpec((), (), True),
    "regression": DnnSpec((4,), ("relu",), False, sigmoid=False),
    "batch norm": DnnSpec((6, 3), ("relu", "tanh"), True),
    "prelu": DnnSpec((5, 4), ("prelu", "prelu"), True),
    "dice": DnnSpec((5, 4), ("dice", "dice"), True),
    "mixed": DnnSpec((7, 1, 4, 3), ("silu", "identity", "softmax", "gelu"), False),
    "leaky": DnnSpec((7, 2), ("leakyrelu", "sigmoid"), True),
}


@pytest.mark.parametrize("order", [("user", "target", "short", "long"), ("long", "short")])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_folded_network_is_the_plain_one(
    spec: DnnSpec, order: tuple[str, ...], rng: np.random.Generator
):
    """W_o, its bias and batch norm are folded; the user block is one row for all candidates."""
    order = (*order, *(n for n in WIDTHS if n not in order))
    state = draw(spec, rng)
    outputs = {
        name: (rng.standard_normal((WIDTHS[name], inner)), rng.standard_normal(WIDTHS[name]))
        for name, inner in INNER.items()
    }
    outputs["long"] = (outputs["long"][0], np.zeros(WIDTHS["long"]))
    blocks = [
        Block(n, WIDTHS[n])
        if n not in INNER
        else Block(n, WIDTHS[n], as_tensor(outputs[n][0]), as_tensor(outputs[n][1], n == "short"))
        for n in order
    ]
    network = FoldedDnn(spec, blocks, state)
    given = {n: rng.standard_normal((2, 3, INNER.get(n, WIDTHS[n]))) for n in order}
    given["user"] = given["user"][:, :1]
    got = network({n: torch.from_numpy(x.astype(np.float32)) for n, x in given.items()})
    assert got.shape == (2, 3)
    for b, c in np.ndindex(2, 3):
        parts = {n: x[b, min(c, x.shape[1] - 1)] for n, x in given.items()}
        for name, (weight, bias) in outputs.items():
            parts[name] = weight @ parts[name] + bias
        expected = plain(spec, state, np.concatenate([parts[n] for n in order]))
        # Logits of size 10 and a few dozen fp32 terms; a sigmoid makes it smaller.
        assert float(got[b, c]) == pytest.approx(expected, abs=1e-5 if spec.sigmoid else 3e-5)


def as_tensor(array: Floats, wanted: bool = True) -> torch.Tensor | None:
    return torch.from_numpy(array.astype(np.float32)) if wanted else None


def test_prelu_with_one_slope_for_all_channels(rng: np.random.Generator):
    spec = DnnSpec((5,), ("prelu",), False)
    state = draw(spec, rng, prelu=1)
    assert state["dnn.0.activation.weight"].shape == (1,)
    x = rng.standard_normal((1, 4, sum(WIDTHS.values())))
    got = FoldedDnn(spec, [Block("all", x.shape[-1])], state)(
        {"all": torch.from_numpy(x.astype(np.float32))}
    )
    for c in range(4):
        assert float(got[0, c]) == pytest.approx(plain(spec, state, x[0, c]), abs=1e-6)


def test_prelu_and_dice_by_hand():
    slope = torch.tensor([0.5, -2.0])
    assert PRelu(slope)(torch.tensor([-2.0, -2.0])).tolist() == [-1.0, 4.0]
    assert PRelu(slope)(torch.tensor([3.0, 0.0])).tolist() == [3.0, 0.0]
    # At x = mean the gate is 1/2: x (1 + alpha) / 2.
    dice = Dice(torch.tensor([0.5]), torch.tensor([4.0]), torch.tensor([1.0]))
    assert dice(torch.tensor([4.0])).item() == pytest.approx(3.0)
    # No variance at all: eps 1e-9 still divides, and the gate is 0 or 1.
    still = Dice(torch.tensor([0.5]), torch.tensor([0.0]), torch.tensor([0.0]))
    assert still(torch.tensor([[8.0], [-8.0]])).tolist() == [[8.0], [-4.0]]


def test_network_of_no_candidates():
    spec = DnnSpec((4,), ("relu",), False)
    state = draw(spec, np.random.default_rng(0))
    network = FoldedDnn(spec, [Block("all", 14)], state)
    assert network({"all": torch.zeros(2, 0, 14)}).shape == (2, 0)


# -- activations by name


@pytest.mark.parametrize("name", sorted(KNOWN - {"prelu", "dice"}))
def test_known_activations_keep_the_shape_and_draw_nothing(name: str):
    module = activation_module(name)
    x = torch.linspace(-3, 3, 12).reshape(2, 1, 6)
    assert module(x).shape == x.shape
    assert torch.equal(module(x), module(x))
    assert not list(module.parameters())


@pytest.mark.parametrize("name", PLAIN)
def test_activations_compute_what_their_names_say(name: str):
    x = np.linspace(-3, 3, 7)
    got = activation_module(name)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, PLAIN[name](x), rtol=1e-12, atol=1e-12)


def test_unknown_activation_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match="unknown activation 'rellu'; did you mean 'relu'"):
        check_activation("rellu")
    for name in ("threshold", "", None, 3, "ReLU"):
        with pytest.raises(SpecError, match="unknown activation"):
            check_activation(name)
    for name in ("relu", "prelu", "dice"):
        check_activation(name)

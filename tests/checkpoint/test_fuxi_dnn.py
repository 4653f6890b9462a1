"""The scoring network: compared with the list of modules it was saved from."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from ckv_export.checkpoint.activations import activation_name
from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.errors import CheckpointError

INPUT = 4 + 3 * 8
TORCH = {
    "relu": torch.relu,
    "leakyrelu": functional.leaky_relu,
    "tanh": torch.tanh,
    "softmax": lambda x: torch.softmax(x, dim=-1),
    "identity": lambda x: x,
}


def _evaluate(checkpoint, x):
    """Apply the native tensors to `x` [rows, INPUT]."""
    state, spec = checkpoint.state, checkpoint.spec.dnn
    for i, name in enumerate(spec.activations):
        part = {k.removeprefix(f"dnn.{i}."): v for k, v in state.items() if f"dnn.{i}." in k}
        x = functional.linear(x, part["weight"], part["bias"])
        if spec.batch_norm:
            norm = [part[f"norm.{p}"] for p in ("mean", "var", "weight", "bias")]
            x = functional.batch_norm(x, *norm, eps=1e-5)
        if name == "prelu":
            x = functional.prelu(x, part["activation.weight"])
        elif name == "dice":
            mean, var = part["activation.mean"], part["activation.var"]
            gate = torch.sigmoid(functional.batch_norm(x, mean, var, eps=1e-9))
            x = gate * x + part["activation.alpha"] * (1 - gate) * x
        else:
            x = TORCH[name](x)
    last = len(spec.hidden)
    x = functional.linear(x, state[f"dnn.{last}.weight"], state[f"dnn.{last}.bias"])
    return torch.sigmoid(x) if spec.sigmoid else x


def _with_dnn(run, fuxi, network, **params):
    run.state = {k: v for k, v in run.state.items() if not k.startswith("dnn.mlp")}
    run.state |= fuxi.mlp_state(network)
    run.params |= params
    return run


def _relu(_):
    return nn.ReLU()


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(
    ("dropout", "given"),
    [((0.1, 0.1), 0.1), ((0.0, 0.0), 0), ((0.3, 0.0), [0.3, 0.0]), ((0.0, 0.3), None)],
)
def test_dropout_and_batch_norm_move_the_indices(make_run, fuxi, batch_norm, dropout, given):
    network = fuxi.mlp(INPUT, dropout=dropout, batch_norm=batch_norm)
    run = _with_dnn(make_run(), fuxi, network, net_dropout=given, batch_norm=batch_norm)
    checkpoint = load_checkpoint(run.write())
    assert checkpoint.spec.dnn.hidden == (6, 5)
    x = torch.randn(7, INPUT)
    torch.testing.assert_close(_evaluate(checkpoint, x), network(x))


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_activations_with_tensors_of_their_own(make_run, fuxi, batch_norm, rate):
    made = (nn.PReLU, fuxi.Dice)
    network = fuxi.mlp(INPUT, (6, 5), made, (rate, rate), batch_norm)
    params = {"dnn_activations": ["PReLU", "Dice"], "net_dropout": rate, "batch_norm": batch_norm}
    checkpoint = load_checkpoint(_with_dnn(make_run(), fuxi, network, **params).write())
    assert checkpoint.spec.dnn.activations == ("prelu", "dice")
    x = torch.randn(7, INPUT)
    torch.testing.assert_close(_evaluate(checkpoint, x), network(x))


def test_other_activations_and_none(make_run, fuxi):
    made = (lambda _: None, lambda _: nn.LeakyReLU(), lambda _: nn.Softmax(dim=-1))
    network = fuxi.mlp(INPUT, (6, 5, 4), made, (0.1, 0.0, 0.1))
    params = {
        "dnn_activations": [None, "LeakyReLU", "softmax"],
        "net_dropout": [0.1, 0, 0.1],
        "dnn_hidden_units": [6, 5, 4],
    }
    checkpoint = load_checkpoint(_with_dnn(make_run(), fuxi, network, **params).write())
    assert checkpoint.spec.dnn.activations == ("identity", "leakyrelu", "softmax")
    x = torch.randn(7, INPUT)
    torch.testing.assert_close(_evaluate(checkpoint, x), network(x))


def test_no_hidden_layer(make_run, fuxi):
    network = fuxi.mlp(INPUT, (), (), (), batch_norm=False)
    run = _with_dnn(make_run(), fuxi, network, dnn_hidden_units=[], batch_norm=False)
    checkpoint = load_checkpoint(run.write())
    x = torch.randn(7, INPUT)
    torch.testing.assert_close(_evaluate(checkpoint, x), network(x))


def test_regression_has_no_sigmoid(make_run):
    run = make_run()
    run.params["task"] = "regression"
    assert load_checkpoint(run.write()).spec.dnn.sigmoid is False
    del run.params["task"]
    assert load_checkpoint(run.write()).spec.dnn.sigmoid is True
    run.params["task"] = "ranking"
    with pytest.raises(CheckpointError, match=r"task must be .*regression, got 'ranking'"):
        load_checkpoint(run.write())


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"net_dropout": 0}, "after dnn.mlp.0 must stand at index 3, got 4"),
        ({"dnn_activations": [None, "relu"], "net_dropout": None}, None),
        ({"dnn_activations": [None, "relu"]}, "must stand at index 3, got 4.*activation None"),
        ({"net_dropout": "some"}, "net_dropout must be a number, got 'some'"),
        ({"net_dropout": [0.1]}, "net_dropout has 1 entries for 2 hidden layers"),
        ({"dnn_activations": ["relu"] * 3}, "dnn_activations has 3 entries for 2 hidden layers"),
        ({"dnn_activations": "rellu"}, "activation 'rellu' is not known .* mean 'relu'"),
        ({"dnn_activations": "dice"}, "no tensor 'dnn.mlp.2.alpha'"),
        ({"dnn_activations": "PReLU"}, "no tensor 'dnn.mlp.2.weight'"),
        ({"batch_norm": False}, "says batch_norm False, but batch norm in the .* is True"),
        ({"dnn_hidden_units": [6, 4]}, r"says dnn_hidden_units \[6, 4\], but .* are \[6, 5\]"),
    ],
)
def test_a_yaml_of_another_network(make_run, params, words):
    run = make_run()
    run.params |= params
    if words is None:  # one of the two places is free, and without the YAML's word either may be
        words = "must stand at index 2 or 3, got 4"
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(run.write())


def test_a_prelu_that_the_yaml_calls_relu(make_run, fuxi):
    network = fuxi.mlp(INPUT, (6, 5), (nn.PReLU, _relu))
    with pytest.raises(CheckpointError, match=r"no place in this model: 'dnn.mlp.2.weight'"):
        load_checkpoint(_with_dnn(make_run(), fuxi, network).write())


def test_batch_norm_before_the_first_layer(make_run):
    run = make_run()
    run.state["dnn.mlp.0.weight"] = torch.ones(INPUT)
    with pytest.raises(CheckpointError, match=r"'dnn.mlp.0.weight' must have 2 axes"):
        load_checkpoint(run.write())


def test_no_scoring_network_at_all(make_run):
    run = make_run()
    run.state = {name: t for name, t in run.state.items() if not name.startswith("dnn.mlp")}
    with pytest.raises(CheckpointError, match=r"no tensor 'dnn.mlp.0.weight'"):
        load_checkpoint(run.write())


def test_a_matrix_that_is_no_layer(make_run):
    run = make_run()
    run.state["dnn.mlp.gate.weight"] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError, match=r"no place in this model: 'dnn.mlp.gate.weight'"):
        load_checkpoint(run.write())


def test_layers_in_any_order(make_run):
    run = make_run()
    spec = load_checkpoint(run.write()).spec
    run.state = dict(reversed(run.state.items()))
    assert load_checkpoint(run.write()).spec == spec


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("ReLU", "relu"),
        ("relu", "relu"),
        ("Dice", "dice"),
        ("LeakyReLU", "leakyrelu"),
        ("leaky_relu", "leakyrelu"),
        ("GELU", "gelu"),
        ("SiLU", "silu"),
        ("Identity", "identity"),
        ("Linear", "identity"),
        ("None", "identity"),
        ("", "identity"),
        (None, "identity"),
    ],
)
def test_activation_names(given, name):
    assert activation_name(given) == name

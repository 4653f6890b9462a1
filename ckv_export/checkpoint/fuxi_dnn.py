"""FuxiCTR's scoring network ``dnn.mlp`` becomes ``dnn.<i>``.

``dnn.mlp`` is a list of modules, and an index counts every one of them: of each hidden
layer Linear, BatchNorm1d if there is batch norm, the activation unless it is None, Dropout
if its rate is above 0; then the Linear to one score. Only some have tensors, so the indices
in the checkpoint are checked against what the YAML says stands between them.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from ckv_export.checkpoint.activations import activation_name, has_module
from ckv_export.checkpoint.facts import Facts
from ckv_export.checkpoint.names import ACTIVATIONS, NORM
from ckv_export.checkpoint.transfer import Transfer
from ckv_export.contract import DnnSpec
from ckv_export.errors import CheckpointError

MLP = "dnn.mlp."
TASKS = {"binary_classification": True, "regression": False}


def import_dnn(run: Facts, transfer: Transfer) -> DnnSpec:
    """Move the tensors of the scoring network to native names and return its specification.

    Raises `CheckpointError` if layers are missing or stand at other indices than the YAML says.
    """
    linears = _linears(transfer)
    batch_norm = _has_batch_norm(transfer)
    run.agree("batch_norm", batch_norm, "batch norm in the checkpoint's dnn is")
    if "dnn_activations" not in run:
        run.need("dnn_activations", str)
    given = _per_layer(run, "dnn_activations", len(linears) - 1)
    _check_gaps(linears, batch_norm, given, run)
    hidden = []
    for i, place in enumerate(linears):
        weight = transfer.move(f"{MLP}{place}.weight", f"dnn.{i}.weight")
        transfer.move(f"{MLP}{place}.bias", f"dnn.{i}.bias")
        hidden.append(weight.shape[0])
    names = [activation_name(one) for one in given]
    for i, place in enumerate(linears[:-1]):
        _move_rest(transfer, i, place, batch_norm, names[i])
    run.agree("dnn_hidden_units", hidden[:-1], "the hidden layers of the checkpoint's dnn are")
    return DnnSpec(tuple(hidden[:-1]), tuple(names), batch_norm, _sigmoid(run))


def _sigmoid(run: Facts) -> bool:
    task = run.optional("task", str) or "binary_classification"
    if task not in TASKS:
        raise CheckpointError(f"{run.where}: task must be {' or '.join(TASKS)}, got {task!r}")
    return TASKS[task]


def _linears(transfer: Transfer) -> list[int]:
    """Return the indices of the Linear layers, the only ones whose weight has two axes."""
    found = [
        int(number[1])
        for part in transfer.under(MLP)
        if (number := re.fullmatch(r"(\d+)\.weight", part))
        and transfer.source[MLP + part].ndim == 2
    ]
    if not found or min(found) != 0:
        transfer.take(f"{MLP}0.weight", ndim=2)
    return sorted(found)


def _has_batch_norm(transfer: Transfer) -> bool:
    """Tell from running statistics; Dice has a norm of its own inside, which is none of these."""
    parts = transfer.under(MLP)
    return any(part.endswith(".running_mean") and ".bn." not in part for part in parts)


def _per_layer(run: Facts, name: str, layers: int) -> list[Any]:
    """Return a setting per hidden layer; it is given once for all, or as a list."""
    value = run.get(name)
    if not isinstance(value, list):
        return [value] * layers
    if len(value) != layers:
        raise CheckpointError(
            f"{run.where}: {name} has {len(value)} entries for {layers} hidden layers"
        )
    return value


def _check_gaps(linears: list[int], batch_norm: bool, given: list[Any], run: Facts) -> None:
    """Check the distance of each Linear to the next; dropout is free if the YAML lacks it."""
    rates = _per_layer(run, "net_dropout", len(given))
    for (place, following), activation, rate in zip(pairwise(linears), given, rates, strict=True):
        least = place + 1 + batch_norm + has_module(activation)
        if rate is None:
            allowed = [least, least + 1]
        elif isinstance(rate, (int, float)):
            allowed = [least + (rate > 0)]
        else:
            raise CheckpointError(f"{run.where}: net_dropout must be a number, got {rate!r}")
        if following not in allowed:
            raise CheckpointError(
                f"the layer after {MLP}{place} must stand at index "
                f"{' or '.join(map(str, allowed))}, got {following}: {run.where} has the "
                f"activation {activation!r}, net_dropout {rate}, batch_norm {batch_norm}"
            )


def _move_rest(transfer: Transfer, i: int, place: int, batch_norm: bool, name: str) -> None:
    """Move batch norm and activation of hidden layer `i`, whose Linear stands at `place`."""
    if batch_norm:
        for part, native in NORM.items():
            transfer.move(f"{MLP}{place + 1}.{part}", f"dnn.{i}.norm.{native}")
    for part, native in ACTIVATIONS.get(name, {}).items():
        key = f"{MLP}{place + 1 + batch_norm}.{part}"
        transfer.move(key, f"dnn.{i}.activation.{native}")

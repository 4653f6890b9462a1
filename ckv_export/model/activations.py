"""Activations of the scoring network by name."""

from __future__ import annotations

from torch import nn

from ckv_export.contract import require
from ckv_export.errors import nearest

PARAMETRIC = ("prelu", "dice")

# These of torch.nn need arguments, change the width, act on images, or draw random numbers.
_UNFIT = {"GLU", "LogSoftmax", "MultiheadAttention", "RReLU", "Softmax2d", "Softmin", "Threshold"}
_MODULES = {n.lower(): n for n in nn.modules.activation.__all__ if n not in _UNFIT}
_MODULES["identity"] = "Identity"

KNOWN = frozenset({*_MODULES, *PARAMETRIC})
"""Lower-case names without underscores."""


def check_activation(name: object) -> None:
    """Raise `SpecError` unless `name` is one of `KNOWN`."""
    known = isinstance(name, str) and name in KNOWN
    require(known, f"dnn: unknown activation {name!r}{nearest(str(name), KNOWN)}")


def activation_module(name: str) -> nn.Module:
    """The torch.nn activation called `name`, one that has no parameters."""
    arguments = {"dim": -1} if name == "softmax" else {}
    module: nn.Module = getattr(nn, _MODULES[name])(**arguments)
    return module

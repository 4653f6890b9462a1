"""Activations of the scoring network by name."""

from __future__ import annotations

from torch import nn

from ckv_export.contract import require
from ckv_export.errors import nearest

PARAMETRIC = ("prelu", "dice")
_NOT_ELEMENTWISE = {"multiheadattention", "softmax2d", "threshold", "glu"}


def known_activations() -> dict[str, str]:
    """Lower-case name -> class in torch.nn; those that need no argument and keep the shape."""
    from torch.nn.modules import activation

    names = {
        name.lower(): name for name in activation.__all__ if name.lower() not in _NOT_ELEMENTWISE
    }
    return names | {"identity": "Identity"}


def activation_module(name: str) -> nn.Module:
    """The parameterless torch.nn activation called `name`; raises `SpecError` if there is none."""
    known = known_activations()
    require(
        name in known and name not in PARAMETRIC,
        f"dnn: the activation {name!r} is unknown{nearest(name, known)}",
    )
    if name in ("softmax", "softmin", "logsoftmax"):
        module: nn.Module = getattr(nn, known[name])(dim=-1)
        return module
    plain: nn.Module = getattr(nn, known[name])()
    return plain

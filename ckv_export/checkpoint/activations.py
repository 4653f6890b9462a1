"""Names of activations: FuxiCTR's, torch's, ours."""

from __future__ import annotations

from typing import Any

from ckv_export.errors import CheckpointError, nearest
from ckv_export.model.activations import KNOWN

NO_MODULE = ("", "none", "linear")


def activation_name(given: Any) -> str:
    """Our name, lower case without underscores: "LeakyReLU" is "leakyrelu", None "identity".

    Raises `CheckpointError` for a name that neither FuxiCTR nor torch.nn knows.
    """
    if not has_module(given):
        return "identity"
    name = str(given).lower().replace("_", "")
    if name not in KNOWN:
        raise CheckpointError(
            f"the activation {given!r} is not known to torch.nn or FuxiCTR{nearest(name, KNOWN)}"
        )
    return name


def has_module(given: Any) -> bool:
    """Whether the activation takes a place in FuxiCTR's list of layers: None does not."""
    return given is not None and str(given).lower() not in NO_MODULE

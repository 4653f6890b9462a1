"""Checks on tensors that come from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ckv_export.errors import CheckpointError


def plain_tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of `state`, checked: floating ones as finite float32, others as is.

    A float32 tensor is returned without a copy, and two names of one tensor stay two names
    of one tensor after a conversion too. Raises `CheckpointError` naming an entry that is
    no dense tensor on the CPU, or holds NaN or infinity.
    """
    converted: dict[tuple[Any, ...], Tensor] = {}
    result = {}
    for name, value in state.items():
        tensor = _dense(name, value)
        key = identity(tensor)
        if key not in converted:
            converted[key] = _finite_float32(name, tensor)
        result[name] = converted[key]
    return result


def identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key that is equal for two views of the same memory, while both live."""
    return (tensor.data_ptr(), tensor.device, tensor.shape, tensor.stride(), tensor.dtype)


def conversion_notes(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """One note if `state`, as stored, has floating tensors that are not float32."""
    kinds = {t.dtype for t in state.values() if t.is_floating_point()} - {torch.float32}
    if not kinds:
        return ()
    names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    return (f"weights stored as {names} were converted to float32",)


def _dense(name: Any, value: Any) -> Tensor:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise CheckpointError(
            f"a state dict maps names to tensors, got {type(value).__name__} for {name!r}"
        )
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        raise CheckpointError(f"tensor {name!r} must be dense and hold its values")
    if value.is_complex():
        raise CheckpointError(f"tensor {name!r} must be real, got {value.dtype}")
    return value.detach()


def _finite_float32(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(torch.float32).contiguous()
    if not is_finite(tensor):
        raise CheckpointError(
            f"tensor {name!r} holds NaN or infinity: the training run has diverged, or a "
            "value is too large for float32"
        )
    return tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite; reads in place, without a temporary copy."""
    if tensor.numel() == 0:
        return True
    # the smallest and the largest element both are NaN where any element is
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))

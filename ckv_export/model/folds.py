"""Projections of events that are left to the other side of a product.

``(A x) . (B e)`` is ``(B^T A x) . e``, and a weighted sum of ``W_v e`` is W_v times that of e. With
a single head an event can so stand for its own key and value: nothing is projected for each event
of a history, and where d_e <= d every product with the events gets narrower.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ckv_export.contract import ModelSpec, require
from ckv_export.model.precision import Reducible


def narrower(spec: ModelSpec) -> bool:
    """Whether an event is no wider than its projection to d."""
    return spec.d_event <= spec.attention.d


def takes_events(spec: ModelSpec) -> bool:
    """Whether a long branch's attention takes the events themselves for its keys and values."""
    return spec.attention.num_heads == 1 and narrower(spec)


def folded(product: Tensor, dtype: torch.dtype, made_of: str) -> Tensor:
    """A product of the tensors that `made_of` names, in `dtype`; raises `SpecError` beyond it."""
    narrow = product.to(dtype)
    require(
        bool(narrow.isfinite().all()),
        f"the product of {made_of}, which is computed in advance, is beyond the range of {dtype}, "
        f"{torch.finfo(dtype).max:g}",
    )
    return narrow


def carried_over(asked: Tensor, found: Tensor, made_of: str) -> Tensor:
    """The weight [e, x] that makes ``(asked x) . (found e)`` a product with e itself.

    asked [d, x], found [d, e]; `made_of` names them. Raises `SpecError` as `folded` does.
    """
    return folded(found.double().T @ asked.double(), asked.dtype, made_of)


def output_weight(spec: ModelSpec, state: Mapping[str, Tensor]) -> Tensor:
    """What the scoring network is yet to apply to `SelectedAttention`: W_o, or W_o W_v."""
    outward = state["long.o.weight"]
    return outward.double() @ state["long.v.weight"].double() if takes_events(spec) else outward


class Unprojected(nn.Module, Reducible):
    """In the place of a projection that stands elsewhere."""

    dtype = torch.float32

    def reduce(self, dtype: torch.dtype) -> None:
        """Give what comes in in `dtype`."""
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """The same."""
        return x.to(self.dtype)

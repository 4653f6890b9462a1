"""Which products of a model run in half precision, and how.

Reduced: attention over cached events (queries, pools, keys, values), the long branch's attention,
the scoring network. Never reduced, because there a rounding decides which row, event or rank is
meant: embeddings, everything that is cached (routers and user parts), every search, softmax, layer
norms and residual sums, and the scoring network's last layer. So what a target-attention model
caches does not depend on its precision.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ckv_export.contract import PRECISIONS, require, require_choice
from ckv_export.errors import SpecError

DTYPES: Mapping[str, torch.dtype] = dict(
    zip(PRECISIONS, (torch.float32, torch.float16, torch.bfloat16), strict=True)
)


class Reducible(abc.ABC):
    """A part of a model whose products may run in half precision.

    `made_of`: the tensors of a checkpoint that its weight is the product of, "" for just one.
    """

    made_of = ""

    @abc.abstractmethod
    def reduce(self, dtype: torch.dtype) -> None:
        """Keep weights in `dtype` and multiply in it; raises `SpecError` where one overflows."""


def reduce_parts(model: nn.Module, precision: str) -> None:
    """Reduce every `Reducible` part of `model` to "fp16" or "bf16"; "fp32" leaves it as it is.

    Raises `SpecError` for a weight that the precision can't hold.
    """
    require_choice("precision", precision, PRECISIONS)
    if precision == "fp32":
        return
    for name, module in model.named_modules():
        if isinstance(module, Reducible):
            try:
                module.reduce(DTYPES[precision])
            except SpecError as error:
                product = f", the product of {module.made_of}" if module.made_of else ""
                raise SpecError(f"{name}{product}: {error}") from error


def reduced(weight: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """`weight` in `dtype`; raises `SpecError` where a finite element becomes infinite."""
    narrow = weight.to(dtype)
    require(
        bool((narrow.isfinite() | ~weight.isfinite()).all()),
        f"a weight of {float(weight.abs().max()):.3g} is beyond the range of {dtype}, "
        f"{torch.finfo(dtype).max:g}: export in bf16 or fp32",
    )
    return nn.Parameter(narrow, requires_grad=False)

"""Features to embeddings, as the inference graphs compute them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckv_export.contract import FeatureSpec
from ckv_export.model.precision import Reducible, reduced


def frozen(tensor: Tensor) -> nn.Parameter:
    """`tensor` as a parameter that shares its memory and takes no gradient."""
    return nn.Parameter(tensor, requires_grad=False)


class Table(nn.Module):
    """An embedding table [vocab, width]; for pooled sequences also which of its rows count."""

    def __init__(self, table: Tensor, pooling: str | None) -> None:
        super().__init__()
        self.pooling = pooling
        self.table = frozen(table)
        if pooling == "mean":
            # Decided here, once: whether a row sums to zero must not depend on a runtime's order
            # of summation or precision.
            self.counts = frozen((table.sum(-1, keepdim=True) != 0).to(table.dtype))

    def forward(self, ids: Tensor) -> Tensor:
        """ids int32 [...] or, pooled, [..., length] -> [..., width]."""
        embedded = F.embedding(ids, self.table)
        if self.pooling is None:
            return embedded
        total = embedded.sum(-2)
        if self.pooling == "sum":
            return total
        # An empty sequence sums to 0, so a count of at least 1 stands for any tiny epsilon.
        return total / F.embedding(ids, self.counts).sum(-2).clamp(min=1.0)


class Column(nn.Module):
    """A number times a learned column [width, 1]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.column = frozen(weight[:, 0])

    def forward(self, value: Tensor) -> Tensor:
        """value [...] -> [..., width]."""
        return value.unsqueeze(-1) * self.column


class Projection(nn.Module):
    """A linear map [out, in] with an optional bias; also a given vector made narrower.

    The weight is kept transposed, as a product from the right reads it: exported graphs then hold
    it under this module's name, with no transposition left to fold. The product is in the weight's
    dtype, whatever comes in.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = frozen(weight.T.contiguous())
        self.bias = None if bias is None else frozen(bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        product = x.to(self.weight.dtype) @ self.weight
        return product if self.bias is None else product + self.bias


class ReducibleProjection(Projection, Reducible):
    """A linear map that half precision may reach."""

    def reduce(self, dtype: torch.dtype) -> None:
        """Keep weight and bias in `dtype`."""
        self.weight = reduced(self.weight, dtype)
        self.bias = None if self.bias is None else reduced(self.bias, dtype)


def _embedder(feature: FeatureSpec, state: Mapping[str, Tensor]) -> nn.Module:
    name = f"embedding.{feature.shares or feature.name}"
    if feature.kind in ("categorical", "sequence"):
        pooling = feature.pooling if feature.kind == "sequence" else None
        return Table(state[f"{name}.table"], pooling)
    if feature.kind == "numeric":
        return Column(state[f"{name}.weight"])
    return Projection(state[f"{name}.weight"]) if feature.projected else nn.Identity()


class FeatureEmbedding(nn.Module):
    """Several features concatenated in the order given.

    Tables that features share are one tensor in memory and in the exported graph.
    """

    def __init__(self, features: Sequence[FeatureSpec], state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.embedders = nn.ModuleList(_embedder(f, state) for f in features)

    def forward(self, values: Sequence[Tensor]) -> Tensor:
        """One tensor per feature -> [..., sum of widths]."""
        embedded = [embed(v) for embed, v in zip(self.embedders, values, strict=True)]
        return torch.cat(embedded, dim=-1)

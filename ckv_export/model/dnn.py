"""The scoring network with everything folded that inference lets fold.

Batch norm goes into the Linear before it. The first Linear is split by input block, so that a
block which is the same for all candidates is multiplied once per user, and an attention's
output projection W_o is multiplied into its block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ckv_export.contract import DnnSpec
from ckv_export.model.activations import activation_module
from ckv_export.model.embedding import Projection, ReducibleProjection, frozen
from ckv_export.model.folds import folded
from ckv_export.model.precision import Reducible, reduced

BATCH_NORM_EPS = 1e-5
DICE_EPS = 1e-9


@dataclass(frozen=True)
class Block:
    """A slice of the network's input: its width, and W_o [width, d] where it is yet to apply."""

    name: str
    width: int
    output_weight: Tensor | None = None
    output_bias: Tensor | None = None

    @property
    def made_of(self) -> str:
        """What its part of the first layer's weight is the product of, in words."""
        outward = f" and the output weights of the {self.name} branch"
        return "dnn.0.weight" + ("" if self.output_weight is None else outward)


class Dice(nn.Module, Reducible):
    """``p x + alpha (1 - p) x`` with ``p = sigmoid(bn(x))``, running statistics, eps 1e-9."""

    def __init__(self, alpha: Tensor, mean: Tensor, var: Tensor) -> None:
        super().__init__()
        self.alpha, self.mean = frozen(alpha), frozen(mean)
        self.rate = frozen((var.double() + DICE_EPS).rsqrt().to(var.dtype))

    def reduce(self, dtype: torch.dtype) -> None:
        """Keep the parameters in `dtype`."""
        self.alpha, self.mean = reduced(self.alpha, dtype), reduced(self.mean, dtype)
        self.rate = reduced(self.rate, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] -> [..., n]."""
        gate = torch.sigmoid((x - self.mean) * self.rate)
        return gate * x + self.alpha * (1 - gate) * x


class PRelu(nn.Module, Reducible):
    """``max(x, 0) + weight min(x, 0)``; weight [1] or one per channel of the last axis."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = frozen(weight)

    def reduce(self, dtype: torch.dtype) -> None:
        """Keep the slope in `dtype`."""
        self.weight = reduced(self.weight, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] -> [..., n]."""
        return torch.where(x > 0, x, self.weight * x)


def _activation(name: str, prefix: str, state: Mapping[str, Tensor]) -> nn.Module:
    if name == "prelu":
        return PRelu(state[f"{prefix}.weight"])
    if name == "dice":
        return Dice(*(state[f"{prefix}.{part}"] for part in ("alpha", "mean", "var")))
    return activation_module(name)


def _linear(spec: DnnSpec, layer: int, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of one Linear in float64, batch norm folded in."""
    weight = state[f"dnn.{layer}.weight"].double()
    bias = state[f"dnn.{layer}.bias"].double()
    if not spec.batch_norm or layer == len(spec.hidden):
        return weight, bias
    gamma, beta, mean, var = (
        state[f"dnn.{layer}.norm.{name}"].double() for name in ("weight", "bias", "mean", "var")
    )
    rate = gamma * (var + BATCH_NORM_EPS).rsqrt()
    return weight * rate[:, None], (bias - mean) * rate + beta


def _split(
    weight: Tensor, bias: Tensor, blocks: Sequence[Block], dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """The columns of `weight` by block, each times its W_o; W_o's biases join `bias`."""
    parts = []
    for block, part in zip(blocks, weight.split([b.width for b in blocks], dim=1), strict=True):
        if block.output_bias is not None:
            bias = bias + part @ block.output_bias.double()
        if block.output_weight is not None:
            part = part @ block.output_weight.double()
        parts.append(folded(part, dtype, block.made_of))
    return parts, folded(bias, dtype, "dnn.0.bias and what is added to it")


class FoldedDnn(nn.Module, Reducible):
    """The network over named input blocks.

    Its last layer, whose result ranks the candidates, is never in half precision.
    """

    def __init__(self, spec: DnnSpec, blocks: Sequence[Block], state: Mapping[str, Tensor]) -> None:
        super().__init__()
        dtype = state["dnn.0.weight"].dtype
        layers = [_linear(spec, i, state) for i in range(len(spec.hidden) + 1)]
        parts, bias = _split(*layers[0], blocks, dtype)
        kinds = [*[ReducibleProjection] * len(spec.hidden), Projection]
        self.first = nn.ModuleDict(
            {b.name: kinds[0](part) for b, part in zip(blocks, parts, strict=True)}
        )
        for block, project in zip(blocks, self.first.values(), strict=True):
            if isinstance(project, Reducible):
                project.made_of = block.made_of
        self.bias = frozen(bias)
        self.rest = nn.ModuleList(
            kind(*(folded(part, dtype, f"dnn.{i} and its batch norm") for part in layer))
            for i, (kind, layer) in enumerate(zip(kinds[1:], layers[1:], strict=True), 1)
        )
        self.activations = nn.ModuleList(
            _activation(name, f"dnn.{i}.activation", state)
            for i, name in enumerate(spec.activations)
        )
        self.sigmoid = spec.sigmoid

    def reduce(self, dtype: torch.dtype) -> None:
        """Keep the first layer's bias in `dtype`, as its weights are."""
        if len(self.rest) > 0:
            self.bias = reduced(self.bias, dtype)

    def forward(self, blocks: Mapping[str, Tensor]) -> Tensor:
        """Blocks [B, C, width] ([B, 1, width] where all candidates share it) -> [B, C]."""
        x: Tensor = self.bias
        for name, project in self.first.items():
            x = project(blocks[name]) + x
        for activate, project in zip(self.activations, self.rest, strict=True):
            x = project(activate(x))
        x = x.squeeze(-1)
        return torch.sigmoid(x) if self.sigmoid else x

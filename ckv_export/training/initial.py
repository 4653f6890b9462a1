"""The tensors a training run starts from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ckv_export.contract import ModelSpec
from ckv_export.model.parameters import expected_shapes
from ckv_export.model.shapes import FREE

# What no specification tells: bits of ETA; hashes and bits of SDIM; log2 time buckets of int32.
ROTATIONS: Mapping[str, tuple[int, ...]] = {"eta": (16,), "sdim": (8, 4)}
TIME_BUCKETS = 31
TABLE_SCALE = 0.1
POOL_SCALE = 0.1
PRELU_SLOPE = 0.25  # as torch.nn.PReLU starts


def initial_state(spec: ModelSpec, seed: int) -> dict[str, Tensor]:
    """Native float32 tensors of `spec`, all of them drawn from `seed`.

    Matrices are Xavier normal, tables and pools small normals, rotations standard normals, norms
    identities. Row 0 of an id table stands for padding and is zero. Raises `SpecError` as
    `expected_shapes` does.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: _sized(spec, name, shape) for name, shape in expected_shapes(spec).items()}
    return {name: _initial(name, shape, generator) for name, shape in shapes.items()}


def is_trained(name: str) -> bool:
    """Whether a gradient moves this tensor: rotations are fixed, statistics are averaged."""
    return name.rsplit(".", 1)[-1] not in ("rotations", "mean", "var")


def padded_tables(names: Iterable[str]) -> list[str]:
    """The id tables, whose row 0 stays zero."""
    return [name for name in names if name.endswith(".table")]


def _sized(spec: ModelSpec, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` with its free sizes filled in."""
    free = iter(_free_sizes(spec, name))
    return tuple(next(free) if size == FREE else size for size in shape)


def _free_sizes(spec: ModelSpec, name: str) -> tuple[int, ...]:
    if name.endswith(".activation.weight"):
        return (spec.dnn.hidden[int(name.split(".")[1])],)
    if name == "long.rotations":
        return ROTATIONS[spec.kind]
    return (spec.max_len,) if name.endswith(".position_bias") else (TIME_BUCKETS,)


def _initial(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    part = name.rsplit(".", 1)[-1]
    if name.endswith(".activation.weight"):
        return torch.full(shape, PRELU_SLOPE)
    if part == "var" or name.endswith("norm.weight"):
        return torch.ones(shape)
    if len(shape) == 1:  # biases, means, the alpha of Dice
        return torch.zeros(shape)
    normal = torch.randn(shape, generator=generator)
    if part == "table":
        normal[0] = 0.0
    return normal * _scale(part, shape)


def _scale(part: str, shape: tuple[int, ...]) -> float:
    fixed = {"table": TABLE_SCALE, "pool": POOL_SCALE, "rotations": 1.0}
    return fixed[part] if part in fixed else float((2.0 / sum(shape)) ** 0.5)

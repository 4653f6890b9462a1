"""Small models drawn at random, and inputs for them.

Everything that a selection is computed from (tables, rotations, search and router matrices,
numbers given as features) consists of small multiples of 1/2. Sums of their products are exact
in fp32 in any order, so a selection has one right answer and ties are real ones, of which there
are many. All other weights are Gaussian.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ckv_export.contract import AttentionSpec, DnnSpec, FeatureSpec, ModelSpec
from ckv_export.model.parameters import expected_shapes
from ckv_export.parity.inputs import Case, generate
from ckv_export.runtimes.base import Array

KINDS = ("sim", "eta", "sdim", "twin")

PLAIN = (
    FeatureSpec("item_id", "item", "categorical", 6, vocab_size=30),
    FeatureSpec("cate_id", "item", "categorical", 4, vocab_size=5),
)
# Every kind of feature in both roles, mixed; only an item's mean is part of a selection, and
# with two positions it divides by 1 or 2, which is exact.
RICH = (
    FeatureSpec("user_id", "user", "categorical", 5, vocab_size=11),
    FeatureSpec("item_id", "item", "categorical", 6, vocab_size=23),
    FeatureSpec("age", "user", "numeric", 2),
    FeatureSpec("tags", "item", "sequence", 4, vocab_size=9, length=2),
    FeatureSpec("last_item", "user", "categorical", 6, vocab_size=23, shares="item_id"),
    FeatureSpec("words", "item", "sequence", 4, 9, 3, pooling="sum", shares="tags"),
    FeatureSpec("price", "item", "numeric", 3),
    FeatureSpec("liked_tags", "user", "sequence", 4, vocab_size=9, length=3, shares="tags"),
    FeatureSpec("image", "item", "vector", 4, length=5, projected=True),
    FeatureSpec("topics", "user", "sequence", 3, vocab_size=7, length=4, pooling="sum"),
    FeatureSpec("colour", "item", "vector", 3, length=3),
    FeatureSpec("profile", "user", "vector", 4, length=4),
    FeatureSpec("face", "user", "vector", 2, length=6, projected=True),
)

# Wide enough not to be drawn dead, with the same score for everything.
DNN = DnnSpec((12, 7), ("relu", "tanh"), batch_norm=True)
ODD_DNN = DnnSpec((9, 5, 4), ("gelu", "prelu", "dice"), batch_norm=False)

# Widths per head are 1, 4 or 16: TWIN selects by scaled logits, and only 1/sqrt of these is exact.
VARIANTS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "rich, fuxictr mask, 2 heads": {
        "features": RICH,
        "attention": AttentionSpec(8, 2, 2, 3, 10, 7),
        "mask_alignment": "fuxictr",
        "dnn": ODD_DNN,
    },
    "K not shared, biases, 4 heads": {
        "features": RICH,
        "attention": AttentionSpec(16, 4, 16, 1, 0, 3, user_bias=True, router_bias=True),
        "mask_alignment": "fuxictr",
    },
    "V not shared, neither silu nor scale": {
        "attention": AttentionSpec(4, 1, 1, 4, 2, 0, use_silu=False, use_scale=False),
        "dnn": DnnSpec((), (), batch_norm=True, sigmoid=False),
    },
    "one row, wide window and search": {
        "attention": AttentionSpec(16, 1, 3, 3, 1, 1),
        "mask_alignment": "fuxictr",
        "window": 9,
        "topk": 12,
    },
    "smallest window, only the best event": {"window": 2, "topk": 1, "features": RICH[1:]},
}


def options(kind: str, topk: int, flag: bool) -> dict[str, Any]:
    """The options of `kind`; `flag` is the boolean one, where there is one."""
    return {
        "sim": {"topk": topk},
        "eta": {"topk": topk, "use_scale": flag},
        "sdim": {"l2_norm": flag},
        "twin": {"topk": topk},
    }[kind]


def make_spec(
    kind: str, variant: str = "plain", *, flag: bool = True, topk: int = 4, **changes: Any
) -> ModelSpec:
    """A small model of `kind`; `changes` are fields of `ModelSpec`."""
    fields: dict[str, Any] = {
        "features": PLAIN,
        "attention": AttentionSpec(16, 4, 2, 1, 10, 13),
        "dnn": DNN,
        "max_len": 30,
        "window": 5,
    }
    fields |= VARIANTS[variant] | changes
    return ModelSpec(kind, options=options(kind, fields.pop("topk", topk), flag), **fields)


def drawn_spec(kind: str, rng: np.random.Generator) -> ModelSpec:
    """A model of `kind` with everything drawn."""
    d, heads = rng.choice([(4, 1), (8, 2), (16, 1), (16, 4), (4, 4)])
    rows = [int(n) for n in rng.integers(1, 20, 2)]
    rows[rng.integers(2)] *= int(rng.integers(2))
    users = [int(d) if n == 0 else int(rng.integers(1, d)) for n in rows]
    flags = {n: bool(rng.integers(2)) for n in ("use_silu", "use_scale", "user_bias")}
    return make_spec(
        kind,
        flag=bool(rng.integers(2)),
        topk=int(rng.integers(1, 9)),
        features=(PLAIN, RICH, RICH[1:])[rng.integers(3)],
        attention=AttentionSpec(
            int(d), int(heads), *users, *rows, **flags, router_bias=bool(rng.integers(2))
        ),
        mask_alignment=("aligned", "fuxictr")[rng.integers(2)],
        window=int(rng.integers(2, 12)),
        dnn=(DNN, ODD_DNN)[rng.integers(2)],
    )


def halves(rng: np.random.Generator, shape: tuple[int, ...], most: int) -> NDArray[np.float32]:
    """Multiples of 1/2 up to most / 2 in size."""
    return (rng.integers(-most, most + 1, shape) / 2).astype(np.float32)


def draw_state(spec: ModelSpec, rng: np.random.Generator) -> dict[str, Tensor]:
    """Tensors of `spec`; see the module on which of them are exact."""
    free = iter((3, 4) if spec.kind == "sdim" else (6,))
    state = {}
    for name, shape in expected_shapes(spec).items():
        if name.endswith(".activation.weight"):
            sizes: tuple[int, ...] = (int(rng.choice([1, spec.dnn.hidden[int(name[4])]])),)
        else:
            sizes = tuple(next(free) if size == -1 else size for size in shape)
        state[name] = torch.from_numpy(np.ascontiguousarray(_drawn(spec, name, sizes, rng)))
    return state


def _drawn(
    spec: ModelSpec, name: str, shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.float32]:
    if name.endswith(".table"):
        table = halves(rng, shape, 4)
        table[0] = 0.0
        # Rows other than 0 count in a mean, whatever it divides by where none does.
        table[1:, 0] += np.where(table[1:].sum(1) == 0, 0.5, 0.0)
        return table
    if name.startswith("embedding.") or "rotations" in name:
        return 2 * halves(rng, shape, 1)
    if ".router." in name:
        return halves(rng, shape, 2)
    searches = ("long.q.", "long.k.") if spec.kind == "twin" else ("long.gsu_",)
    if name.startswith(searches):
        return halves(rng, shape, 1)
    if name.endswith(".var"):
        return rng.uniform(0.5, 2.0, shape).astype(np.float32)
    if name.endswith(".norm.weight"):
        # Of either sign, none near zero: small ones in two layers leave all scores nearly alike.
        return (rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)).astype(np.float32)
    scale = 0.5 if len(shape) == 1 else 1.0 / max(shape[-1], 1) ** 0.5
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def exact(array: Array) -> Array:
    """Numbers rounded to multiples of 1/2 within [-2, 2]; ids and masks as they are."""
    if array.dtype != np.float32:
        return array
    return (np.clip(np.round(array * 2), -4, 4) / 2).astype(np.float32)


def draw_cases(spec: ModelSpec, seed: int) -> list[Case]:
    """The gate's own cases with exact numbers."""
    return [
        dataclasses.replace(case, inputs={name: exact(a) for name, a in case.inputs.items()})
        for case in generate(spec, seed)
    ]

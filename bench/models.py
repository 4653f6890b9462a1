"""Models with random weights at the paper's sizes, for benchmarks that need no training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from ckv_export.contract import AttentionSpec, DnnSpec, FeatureSpec, ModelSpec
from ckv_export.training.initial import initial_state

WIDTH = 64


def sim_spec(d: int, heads: int, d_u: int, rows: int, history: int) -> ModelSpec:
    """SIM with three item features of 64 and a CollectiveKV branch over the whole history."""
    return ModelSpec(
        kind="sim",
        features=(
            FeatureSpec("item_id", "item", "categorical", WIDTH, vocab_size=24323),
            FeatureSpec("cate_id", "item", "categorical", WIDTH, vocab_size=514),
            FeatureSpec("image", "item", "vector", WIDTH, length=WIDTH),
        ),
        attention=AttentionSpec(d, heads, d_u, d_u, rows, rows),
        dnn=DnnSpec((1024, 512, 256), ("relu",) * 3, batch_norm=True),
        max_len=history,
        window=history + 1,
        options={"topk": 50},
    )


def hstu_spec(d: int, heads: int, d_u: int, rows: int, history: int) -> ModelSpec:
    """HSTU of two layers with the same item features and timestamps."""
    sim = sim_spec(d, heads, d_u, rows, history)
    features = (*sim.features, FeatureSpec("time", "item", "timestamp", 0))
    return dataclasses.replace(
        sim, kind="hstu", features=features, window=None, num_layers=2, options={}
    )


def save_items(path: Path, spec: ModelSpec, seed: int = 0) -> None:
    """An .npz for ``--item-features``: random features of every item."""
    rng = np.random.default_rng(seed)
    ids = spec.item_features[0]
    columns: dict[str, np.ndarray] = {ids.name: np.arange(ids.vocab_size)}
    for feature in spec.embedded_item_features[1:]:
        size = (ids.vocab_size, *feature.inner)
        drawn = feature.kind == "categorical"
        columns[feature.name] = (
            rng.integers(0, feature.vocab_size, size) if drawn else rng.normal(size=size)
        )
        columns[feature.name][0] = 0  # padding
    np.savez(path, **columns)


def weights(spec: ModelSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    """Where a training run would start."""
    return initial_state(spec, seed)

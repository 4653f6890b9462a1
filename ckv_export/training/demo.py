"""A small real model, trained in seconds: what the demo, the README and the tests export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ckv_export.checkpoint.native import save_native
from ckv_export.contract import AttentionSpec, DnnSpec, FeatureSpec, ModelSpec, Option, require
from ckv_export.errors import nearest
from ckv_export.training.clicks import ClickData
from ckv_export.training.data import AGES, TOPICS, click_data
from ckv_export.training.loop import Progress, TrainingReport, train

EPOCHS = 3
EVENTS = "events.npz"
OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "sim": {"topk": 20},
    "eta": {"topk": 20, "use_scale": True},
    "sdim": {"l2_norm": True},
    "twin": {"topk": 20},
    "hstu": {},
}
USERS, CANDIDATES = 3000, 4


def demo_spec(kind: str) -> ModelSpec:
    """A model of `kind` with every kind of feature: d 64, 2 heads, M 256, d_u 2.

    A window of 50 and histories of 200, but for HSTU: two layers, histories of 64 with their times.
    Raises `SpecError` for a kind that has no demo.
    """
    require(
        kind in OPTIONS,
        f"there is a demo of {', '.join(OPTIONS)}, got {kind!r}{nearest(kind, OPTIONS)}",
    )
    hstu = kind == "hstu"
    time = (FeatureSpec("time", "item", "timestamp", 0),) if hstu else ()
    return ModelSpec(
        kind=kind,
        features=(
            FeatureSpec("age", "user", "categorical", 8, vocab_size=AGES),
            FeatureSpec("declared", "user", "sequence", 8, vocab_size=TOPICS + 1, length=5),
            FeatureSpec("activity", "user", "numeric", 4),
            FeatureSpec("item_id", "item", "categorical", 32, vocab_size=2001),
            FeatureSpec("cate_id", "item", "categorical", 16, vocab_size=2 * TOPICS + 1),
            FeatureSpec("image", "item", "vector", 16, length=16, projected=True),
            *time,
        ),
        attention=AttentionSpec(
            d=64, num_heads=2, user_k=2, user_v=2, pool_rows_k=256, pool_rows_v=256
        ),
        dnn=DnnSpec(hidden=(64, 32), activations=("relu", "relu"), batch_norm=True),
        max_len=64 if hstu else 200,
        window=None if hstu else 50,
        num_layers=2 if hstu else 1,
        options=OPTIONS[kind],
    )


def demo_data(
    spec: ModelSpec,
    seed: int,
    *,
    train: int = USERS,
    held_out: int = 500,
    candidates: int = CANDIDATES,
) -> ClickData:
    """Generated clicks for `demo_spec`, or the same features with other sizes; see `click_data`."""
    return click_data(spec, seed, train, held_out, candidates)


def train_demo(
    kind: str, path: Path, *, seed: int = 0, progress: Progress | None = None
) -> TrainingReport:
    """Train a demo model and save it at `path`, its held-out events beside it.

    Writes a native checkpoint as `save_native` does (one file for a name in .pt, else a folder)
    and ``events.npz`` (`Clicks.save`) in the folder of `path`; both overwrite what is there.
    """
    spec = demo_spec(kind)
    data = demo_data(spec, seed)
    state, report = train(spec, data, epochs=EPOCHS, seed=seed, progress=progress)
    save_native(path, spec, state)
    data.held_out.save(path.parent / EVENTS)
    return report

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from torch import Tensor

from ckv_export.contract import AttentionSpec, DnnSpec, ModelSpec
from ckv_export.training import ClickData, TrainingReport, demo_data, demo_spec, train

SpecMaker = Callable[..., ModelSpec]


@dataclass(frozen=True)
class Run:
    state: dict[str, Tensor]
    report: TrainingReport
    progress: list[tuple[int, int, float]]


def _small_spec(kind: str = "sim") -> ModelSpec:
    """The demo's features over short histories; few items, so that few clicks teach them."""
    full = demo_spec(kind)
    vocab = {"item_id": 97, "cate_id": 17}
    return dataclasses.replace(
        full,
        features=tuple(
            dataclasses.replace(f, vocab_size=vocab.get(f.name, f.vocab_size))
            for f in full.features
        ),
        attention=AttentionSpec(16, 2, user_k=2, user_v=2, pool_rows_k=24, pool_rows_v=24),
        dnn=DnnSpec((16,), ("relu",), batch_norm=True),
        max_len=40,
        window=None if kind == "hstu" else 12,
        options={n: 5 if n == "topk" else v for n, v in full.options.items()},
    )


@pytest.fixture(scope="session")
def small_spec() -> SpecMaker:
    return _small_spec


@pytest.fixture(scope="session")
def small_data() -> ClickData:
    return demo_data(_small_spec(), 1, train=1200, held_out=300, candidates=3)


@pytest.fixture(scope="session")
def run(small_data: ClickData) -> Run:
    steps: list[tuple[int, int, float]] = []
    state, report = train(
        _small_spec(), small_data, epochs=4, seed=3, progress=lambda *seen: steps.append(seen)
    )
    return Run(state, report, steps)

"""What every test shares: where the recorded samples lie, and what this machine lacks."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ckv_testing import exports
from ckv_testing.exports import Export
from ckv_testing.hstu import exported_hstu
from ckv_testing.serving import Shop, export_items, exported_shop, hstu_shop, items_shop
from ckv_testing.workers import common_folder, common_seed, made_once

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "samples"

# On a busy machine a second thread is waited for longer than it works.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of checkpoints with outputs recorded from the paper authors' training code."""
    if not SAMPLES.is_dir():
        pytest.skip(f"recorded sample checkpoints are not here: {SAMPLES}")
    return SAMPLES


@pytest.fixture
def seed() -> int:
    """A fresh seed, printed where the test fails; set CKV_TEST_SEED to repeat one."""
    number = int(os.environ.get("CKV_TEST_SEED", secrets.randbits(32)))
    print(f"CKV_TEST_SEED={number}")
    return number


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A generator from `seed`."""
    return np.random.default_rng(seed)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch on one thread, see `ckv_testing.exports.one_thread`."""
    with exports.one_thread():
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Export]:
    """A drawn model of a kind with its ONNX files, which the whole run shares.

    Set CKV_EXPORT_SEED to repeat a printed one.
    """
    number, common = common_seed(), common_folder(tmp_path_factory.getbasetemp())
    made: dict[str, Export] = {}

    def get(kind: str) -> Export:
        print(f"exported {kind}: CKV_EXPORT_SEED={number}")
        if kind not in made:
            made[kind] = exports.drawn(kind, common / f"exported_{kind}", number)
            made_once(made[kind].folder, made[kind].save)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def shops(
    exported: Callable[[str], Export], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Shop]:
    """A bundle to serve from and its reference; made when asked for.

    "sim": every kind of feature in both roles; "eta": its projections and routers have biases;
    both with the paper authors' mask rule; "hstu"; "items": with an item table.
    """
    made: dict[str, Shop] = {}
    base = tmp_path_factory.getbasetemp()

    def make(form: str) -> Shop:
        if form == "items":
            return items_shop(made_once(common_folder(base) / "shop_items", export_items))
        folder = tmp_path_factory.mktemp(f"shop_{form}")
        if form in ("sim", "eta"):
            return exported_shop(exported(form), folder)
        return hstu_shop(exported_hstu(base), folder)

    def get(form: str) -> Shop:
        if form not in made:
            made[form] = make(form)
        return made[form]

    return get


@pytest.fixture(params=["sim", "items", "hstu"])
def shop(request: pytest.FixtureRequest, shops: Callable[[str], Shop]) -> Shop:
    """Each of the `shops`."""
    return shops(request.param)

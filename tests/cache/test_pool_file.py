"""A file of pools: written whole, read only where it holds what graphs take."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.records import MANIFESTS
from safetensors import safe_open
from safetensors.numpy import save_file

from ckv_export.cache.item_table import save_item_table
from ckv_export.cache.pool_file import load_pools, save_pools
from ckv_export.contract import EventForm
from ckv_export.errors import BundleError
from ckv_export.manifest import POOLS_FILE

POOLS = {"pool_k_0": np.zeros((3, 2), np.float32)}
TWO_IDS = dataclasses.replace(MANIFESTS["two ids"], form=EventForm(pools="float16"))
TAKEN = {"pool_k_0": np.ones((10, 14), np.float16), "pool_v_0": np.ones((65536, 13), np.float16)}


@pytest.mark.parametrize(
    ("place", "why"),
    [("nowhere/pools.safetensors", "there is no such"), ("folder", "it is no plain file")],
)
def test_a_place_that_can_not_be_written_is_refused(tmp_path: Path, place: str, why: str):
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(BundleError, match=rf"can't write the pools \S*{place}: {why}"):
        save_pools(tmp_path / place, POOLS, "", "")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_pipe_is_never_replaced(tmp_path: Path):
    """Nor is a device: ``/dev/null`` would be a file from then on."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BundleError, match=r"can't write the pools .*pipe: it is no plain file"):
        save_pools(pipe, POOLS, "", "")
    assert pipe.is_fifo()
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_pools_are_readable_as_any_new_file_is(tmp_path: Path):
    (tmp_path / "new").touch()
    save_pools(tmp_path / "pools.safetensors", POOLS, "", "")
    save_item_table(tmp_path, POOLS)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_pools_are_read_as_they_were_written(tmp_path: Path):
    save_pools(tmp_path / POOLS_FILE, TAKEN, "a model", "its entries")
    for name, pool in load_pools(tmp_path, TWO_IDS).items():
        np.testing.assert_array_equal(pool, TAKEN[name], strict=True)
    with safe_open(tmp_path / POOLS_FILE, framework="numpy") as file:
        assert file.metadata() == {"fingerprint": "a model", "entries": "its entries"}
    assert load_pools(tmp_path, MANIFESTS["two ids"]) == {}, "its graphs hold them"


@pytest.mark.parametrize(
    "pools",
    [
        {"pool_k_0": TAKEN["pool_k_0"]},
        TAKEN | {"pool_k_1": TAKEN["pool_k_0"]},
        TAKEN | {"pool_k_0": TAKEN["pool_k_0"][1:]},
        TAKEN | {"pool_k_0": TAKEN["pool_k_0"].astype(np.float32)},
    ],
    ids=["one is missing", "one too many", "of another shape", "of another dtype"],
)
def test_other_pools_than_the_graphs_take_are_refused(tmp_path: Path, pools: dict):
    save_file(pools, tmp_path / POOLS_FILE)
    with pytest.raises(BundleError, match=rf"{POOLS_FILE} must hold .*\(10, 14\)"):
        load_pools(tmp_path, TWO_IDS)


def test_a_file_that_holds_no_pools(tmp_path: Path):
    with pytest.raises(BundleError, match=f"{POOLS_FILE} holds no pools: there is no such file"):
        load_pools(tmp_path, TWO_IDS)
    (tmp_path / POOLS_FILE).write_bytes(b"\0" * 20)
    with pytest.raises(BundleError, match=f"{POOLS_FILE} holds no pools: "):
        load_pools(tmp_path, TWO_IDS)

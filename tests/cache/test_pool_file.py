"""A file of pools that can't be written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ckv_export.cache.item_table import save_item_table
from ckv_export.cache.pool_file import save_pools
from ckv_export.errors import BundleError

POOLS = {"pool_k_0": np.zeros((3, 2), np.float32)}


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

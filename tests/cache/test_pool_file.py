"""A file of pools that can't be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ckv_export.cache.pool_file import save_pools
from ckv_export.errors import BundleError

POOLS = {"pool_k_0": np.zeros((3, 2), np.float32)}


@pytest.mark.parametrize("place", ["nowhere/pools.safetensors", "folder"])
def test_a_place_that_can_not_be_written_is_refused(tmp_path: Path, place: str):
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(BundleError, match=f"can't write the pools .*{place}"):
        save_pools(tmp_path / place, POOLS, "", "")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]

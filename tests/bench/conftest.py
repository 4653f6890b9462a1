"""What tests of a benchmark share."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def unpinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory in place of pinned memory, which only a machine with a GPU has."""
    monkeypatch.setattr("ckv_export.bench.pinned.zeros", np.zeros)

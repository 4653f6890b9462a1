from __future__ import annotations

from pathlib import Path

import pytest
from ckv_testing.toy_bundle import write_toy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_toy(tmp_path)

"""What tests of a benchmark share."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ckv_testing.scripts import load_script

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def unpinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory in place of pinned memory, which only a machine with a GPU has."""
    monkeypatch.setattr("ckv_export.bench.pinned.zeros", np.zeros)


@pytest.fixture
def kernel_cases(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return on_cpu("kernel_cases", monkeypatch)


@pytest.fixture
def kernel_rates(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return on_cpu("kernel_rates", monkeypatch)


def on_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_script(BENCH / f"{name}.py", monkeypatch)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    return module

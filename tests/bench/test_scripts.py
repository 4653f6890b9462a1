"""What bench/bench_decode.py times is what it says, at small sizes and without compiling."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    made = importlib.import_module("bench_decode")
    for name, value in (("HISTORY", 40), ("CANDIDATES", 5), ("ROWS", 30)):
        monkeypatch.setattr(made, name, value)
    return made


@pytest.mark.parametrize("heads", [1, 8])
def test_every_variant_of_the_branch_computes_the_formula(script: ModuleType, heads: int):
    spec = script.models.sim_spec(16, heads, 2, 30, 40)
    model = script.build_model(spec, script.models.weights(spec))
    with torch.inference_mode():
        calls = script.branch_calls(model)
    assert len(calls) == 7
    assert set(script.VARIANTS) < set(calls)


def test_a_wrong_variant_is_not_timed(script: ModuleType):
    calls = {"wrong": lambda: np.full(100, 1.0)}
    script.check(calls, np.full(100, 1.0), 1e-6, 1.0)
    with pytest.raises(SystemExit, match=r"wrong: wrong by up to 1\.0e-03"):
        script.check(calls, np.full(100, 1.001), 1e-6, 0.99)

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
    return importlib.import_module("bench_decode")


def small(script: ModuleType, d: int, heads: int):
    case = script.Case(d, heads, history=40, candidates=5, rows=30)
    spec = script.models.sim_spec(d, heads, case.d_u, case.rows, case.history)
    return spec, case


@pytest.mark.parametrize("heads", [1, 8])
def test_every_variant_of_the_branch_computes_the_formula(script: ModuleType, heads: int):
    spec, case = small(script, 16, heads)
    model = script.build_model(spec, script.models.weights(spec))
    with torch.inference_mode():
        calls = script.branch_calls(model, case)
    assert len(calls) == 7
    assert set(sys.modules["decode_branch"].VARIANTS) < set(calls)


def test_every_form_of_the_model_computes_its_scores(script: ModuleType, tmp_path: Path):
    spec, case = small(script, 192, 1)
    state = script.models.weights(spec)
    with torch.inference_mode():
        calls = script.model_calls(script.build_model(spec, state), state, case, tmp_path)
    first, *rest = (call() for call in calls.values())
    assert len(rest) == 6
    assert np.ptp(first) > 1e-4
    for scores in rest:
        np.testing.assert_allclose(scores, first, atol=2e-6)


def test_a_wrong_variant_is_not_timed(script: ModuleType):
    check = sys.modules["decode_case"].check
    calls = {"wrong": lambda: np.full(100, 1.0)}
    check(calls, np.full(100, 1.0), 1e-6, 1.0)
    with pytest.raises(SystemExit, match=r"wrong: wrong by up to 1\.0e-03"):
        check(calls, np.full(100, 1.001), 1e-6, 0.99)

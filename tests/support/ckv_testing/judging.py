"""Models before the gate, and its verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from ckv_export.contract import ModelSpec
from ckv_export.errors import ParityFailure
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.registry import build_model, build_reference
from ckv_export.parity.expected import ExpectedCase, record
from ckv_export.parity.gate import EVERY_CASE, RuntimeResult, judge, require_pass
from ckv_export.parity.inputs import generate
from ckv_export.runtimes.base import Runner
from ckv_export.runtimes.torch import TorchRunner
from ckv_testing import hstu_models
from ckv_testing.draw import draw_state, make_spec
from ckv_testing.exports import Export


def judged(made: Export, prefill: Runner, decode: Runner) -> RuntimeResult:
    return judge(made.spec, prefill, decode, made.cases)


def failed(outcome: RuntimeResult) -> set[str]:
    """The tensors that diverge; the message must name the first of them."""
    first = outcome.first_failure
    assert first is not None, "the gate saw nothing"
    assert not outcome.passed
    with pytest.raises(ParityFailure) as error:
        require_pass(outcome)
    assert str(error.value).endswith(first.sentence())
    assert f"computes: {first.tensor} of case {first.case!r}" in str(error.value)
    assert error.value.exit_code == 1
    return {r.tensor for r in outcome.results if not r.passed}


def failed_over_all(outcome: RuntimeResult) -> str:
    """The tensor that no single case fails by."""
    first = outcome.first_failure
    assert first is not None
    assert first.case == EVERY_CASE
    return first.tensor


def split(spec, state) -> tuple[TorchRunner, TorchRunner]:
    model = build_model(spec, state)
    graphs = (PrefillGraph(model), DecodeGraph(model))
    return TorchRunner(graphs[0], graphs[0].io), TorchRunner(graphs[1], graphs[1].io)


def drawn(kind: str) -> tuple[ModelSpec, tuple[TorchRunner, TorchRunner], list[ExpectedCase]]:
    """A model, its split form, and three of its cases; the first is of one event."""
    rng = np.random.default_rng(1)
    layered = kind == "hstu"
    spec = hstu_models.make_spec("two layers") if layered else make_spec(kind)
    state = hstu_models.draw(spec, rng, 8) if layered else draw_state(spec, rng)
    state = {name: tensor.float() for name, tensor in state.items()}
    chosen = [case for n, case in enumerate(generate(spec, 0)) if n in (2, 6, 7)]
    cases = record(build_reference(spec, state), chosen)
    return spec, split(spec, state), cases

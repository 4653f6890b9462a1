"""Checks on tensors from a file, and the tables of names beside the models."""

from __future__ import annotations

import pytest
import torch

from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.checkpoint.names import KIND_MARKS, LONG
from ckv_export.checkpoint.tensors import is_finite, plain_tensors
from ckv_export.errors import CheckpointError
from ckv_export.model.parameters import check_state, expected_shapes
from ckv_export.model.registry import MODELS


@pytest.mark.parametrize("kind", sorted(LONG))
def test_a_loaded_checkpoint_has_exactly_the_expected_shapes(make_run, kind):
    checkpoint = load_checkpoint(make_run(kind).write())
    assert set(expected_shapes(checkpoint.spec)) == set(checkpoint.state)


def test_names_of_a_file_are_shown_instead_of_native_ones(make_run):
    checkpoint = load_checkpoint(make_run().write())
    state = checkpoint.state | {"long.q.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"'theirs' must be \[8, 8\], got \[1\]"):
        check_state(checkpoint.spec, state, {"long.q.weight": "theirs"})


def test_the_tables_speak_of_the_same_kinds():
    assert set(LONG) == set(KIND_MARKS.values()) == set(MODELS) - {"hstu"}


def test_is_finite():
    assert is_finite(torch.zeros(0, 3))
    big = torch.zeros(300_000)
    for position in (0, 123_457, -1):
        for bad in (float("nan"), float("inf")):
            spoiled = big.clone()
            spoiled[position] = bad
            assert not is_finite(spoiled)
    assert is_finite(torch.full((3,), 3e38))


def test_plain_tensors_copies_no_float32():
    tensor = torch.randn(3, 2)
    assert plain_tensors({"a": tensor})["a"].data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("view", [lambda t: t.T, lambda t: t[:2], lambda t: t.view(torch.float16)])
def test_views_of_one_memory_are_told_apart(view):
    tensor = torch.arange(9, dtype=torch.bfloat16).reshape(3, 3)
    state = plain_tensors({"a": tensor, "b": view(tensor)})
    assert torch.equal(state["a"], tensor.float())
    assert torch.equal(state["b"], view(tensor).float())
    assert state["b"].is_contiguous()


def test_a_parameter_is_a_plain_tensor():
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not plain_tensors({"a": parameter})["a"].requires_grad


def test_a_name_that_is_no_text():
    with pytest.raises(CheckpointError, match="maps names to tensors, got Tensor for 3"):
        plain_tensors({3: torch.zeros(1)})


def test_a_value_too_large_for_float32():
    with pytest.raises(CheckpointError, match="'a' holds NaN or infinity"):
        plain_tensors({"a": torch.tensor([1e300], dtype=torch.float64)})

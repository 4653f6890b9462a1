"""Fingerprints are of every value, shape and dtype of a state dict, however it lies in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ckv_testing.draw import RICH, draw_state, make_spec
from ckv_testing.fingerprints import State, slow_fingerprints
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ckv_export.model.fingerprint import COPIED, Fingerprints

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = make_spec("sim", features=RICH)


def odd_tensors() -> State:
    """What a state dict may hold beside plain weights; the names take part in all fingerprints."""
    numbers = torch.arange(24.0).reshape(4, 6) - 7.3
    odd = {
        "half": numbers.half(),
        "bfloat": numbers.bfloat16(),
        "double": numbers.double(),
        "mask": numbers > 0,
        "ids": numbers.long(),
        "small ids": numbers.int(),
        "scalar": torch.tensor(3.5),
        "flag": torch.tensor(True),
        "none of five": torch.zeros(0, 5),
        "five of none": torch.zeros(5, 0),
        "half of none": torch.zeros(0).half(),
        "turned": numbers.T,
        "every second": numbers[:, ::2],
        "one of six": numbers[1, ::6],
        "one for all": torch.tensor([2.0]).expand(3, 4),
        "learned": numbers.clone().requires_grad_(),
    }
    return {f"attention.0.k.{name}": tensor for name, tensor in odd.items()}


def test_fingerprints_are_those_of_every_value_packed(rng: np.random.Generator):
    state = draw_state(SPEC, rng) | odd_tensors()
    assert Fingerprints.of(SPEC, state, "ab") == slow_fingerprints(SPEC, state, "ab")
    backwards = dict(reversed(state.items()))
    assert Fingerprints.of(SPEC, backwards, "ab") == slow_fingerprints(SPEC, state, "ab")


@pytest.mark.parametrize("name", odd_tensors())
def test_shape_and_dtype_are_told_apart_without_a_value(name: str, rng: np.random.Generator):
    """The same bytes under another shape or dtype, none of them included, are another tensor."""
    state = draw_state(SPEC, rng) | odd_tensors()
    tensor = state[name].detach()
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    other = whole[tensor.element_size()]
    if other == tensor.dtype:
        other = {4: torch.float32, 8: torch.float64}[tensor.element_size()]
    typed = tensor.clone(memory_format=torch.contiguous_format).view(other)
    assert typed.shape == tensor.shape
    seen = [Fingerprints.of(SPEC, state | {name: t}) for t in (tensor, tensor[None], typed)]
    for one in ("model", "but_pools", "entries"):
        assert len({getattr(made, one) for made in seen}) == 3, one


def test_mapped_state_has_the_fingerprints_of_the_one_in_memory(
    tmp_path: Path, rng: np.random.Generator
):
    state = draw_state(SPEC, rng)
    torch.save(state, tmp_path / "state.pt")
    mapped = torch.load(tmp_path / "state.pt", mmap=True)
    assert Fingerprints.of(SPEC, mapped) == Fingerprints.of(SPEC, state)


# -- nothing big is copied


class Copies(TorchDispatchMode):
    """Records the bytes of the largest memory that an operation made."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.known = {given.untyped_storage().data_ptr()}
        self.largest = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.known:
                self.largest = max(self.largest, storage.nbytes())
        return result


def big(layout: str) -> Tensor:
    """Three times what may be copied at once, and one number more."""
    numbers = torch.arange(3 * COPIED // 4 + 1, dtype=torch.int32)
    tall = numbers[:-1].reshape(-1, 64)
    return {
        "as it lies": numbers,
        "turned": tall.T,
        "every second": tall[:, ::2],
        "one row": torch.stack([numbers, numbers], -1)[None, :, 0],
        "same row": numbers[:64].expand(len(tall), 64),
    }[layout]


@pytest.mark.parametrize("layout", ["as it lies", "turned", "every second", "one row", "same row"])
def test_a_big_tensor_is_read_in_place_or_in_pieces(layout: str):
    tensor = big(layout)
    state = {"input.weight": tensor}
    with Copies(tensor) as copies:
        made = Fingerprints.of(SPEC, state)
    assert made == Fingerprints.of(SPEC, {"input.weight": tensor.contiguous()})
    if tensor.is_contiguous():
        assert copies.largest == 0
    else:
        assert 0 < copies.largest <= COPIED

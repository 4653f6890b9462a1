"""One tensor against its reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckv_export.parity.tolerances import EXPLAINED_MARGIN, Tolerance
from ckv_export.runtimes.base import Array


@dataclass(frozen=True)
class TensorResult:
    """How one output of one case came out.

    `error`: largest absolute difference (for row numbers: how many differ); `allowed`: what the
    element with that difference was allowed; `where`: its position; `explained`: differing row
    numbers excused by their router margin, or scores by their selection margin; `worst_margin`:
    largest margin of a differing row number; `needed`: below what it would have been excused;
    `mean`: of the absolute differences, divided by the tensor's scale; `told`: the sentence, of a
    result about all cases or about a tensor that can't be compared.
    """

    case: str
    tensor: str
    elements: int
    error: float
    allowed: float
    where: tuple[int, ...] | None
    explained: int
    worst_margin: float | None
    passed: bool
    needed: float = EXPLAINED_MARGIN
    mean: float = 0.0
    told: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; a number that isn't finite is null."""
        fields = asdict(self)
        del fields["needed"], fields["told"]
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }

    def sentence(self) -> str:
        """What differs, where and by how much."""
        if self.told:
            return self.told
        place = "" if self.where is None else f" at {list(self.where)}"
        if self.worst_margin is not None:
            return (
                f"{self.tensor} of case {self.case!r} has {int(self.error)} other row numbers of "
                f"{self.elements}, first{place}, with a router margin up to "
                f"{self.worst_margin:.2g} where only one below {self.needed:g} is rounding"
            )
        return (
            f"{self.tensor} of case {self.case!r} is off by {self.error:.3g}{place} "
            f"where {self.allowed:.3g} is allowed"
        )


def alike(got: Array, expected: Array) -> bool:
    """Whether two tensors can be compared: of the same shape and type."""
    return got.shape == expected.shape and got.dtype == expected.dtype


def compare_values(
    case: str,
    tensor: str,
    got: Array,
    expected: Array,
    bounds: Sequence[Tolerance],
    counted: NDArray[np.bool_] | None = None,
    excusable: NDArray[np.bool_] | None = None,
) -> TensorResult:
    """Compare floats elementwise; `counted`, bool of the first axes, leaves rows out.

    `bounds`: one for all, or one of each layer of tensors [B, L, N, ...]. A NaN or infinity on
    either side is a difference without bound, and never left out. `excusable`, bool of the tensor's
    shape: finite elements whose difference counts as explained where it is too large.
    """
    if not alike(got, expected):
        return _not_alike(case, tensor, got, expected)
    finite = np.isfinite(got) & np.isfinite(expected)
    wanted = np.where(finite, expected, 0.0).astype(np.float64)
    difference = np.where(finite, np.abs(np.where(finite, got, 0.0) - wanted), np.inf)
    if counted is not None:
        left_out = ~counted.reshape(counted.shape + (1,) * (got.ndim - counted.ndim))
        difference[left_out & finite] = 0.0
    size = np.abs(wanted)
    scale = max(1.0, float(size.max(initial=0.0)))
    absolute = _by_layer([b.absolute for b in bounds], got.ndim)
    relative = _by_layer([b.relative for b in bounds], got.ndim)
    allowed = absolute * scale + relative * size
    if difference.size == 0:
        return TensorResult(case, tensor, 0, 0.0, bounds[0].absolute, None, 0, None, True)
    explained = 0
    if excusable is not None:
        excused = excusable & np.isfinite(difference) & (difference > allowed)
        explained = int(excused.sum())
        difference[excused] = 0.0
    worst = np.unravel_index(int(np.argmax(difference / allowed)), difference.shape)
    passed = bool(difference[worst] <= allowed[worst])
    where = tuple(int(i) for i in worst)
    error, bound = float(difference[worst]), float(allowed[worst])
    return TensorResult(
        case,
        tensor,
        difference.size,
        error,
        bound,
        where,
        explained,
        None,
        passed,
        mean=float(difference.mean()) / scale,
    )


def _not_alike(case: str, tensor: str, got: Array, expected: Array) -> TensorResult:
    forms = (f"{array.dtype} {list(array.shape)}" for array in (got, expected))
    told = f"{tensor} of case {case!r} is {' where the reference has '.join(forms)}"
    return TensorResult(case, tensor, got.size, math.inf, 0.0, None, 0, None, False, told=told)


def _by_layer(numbers: Sequence[float], ndim: int) -> NDArray[np.float64]:
    """One number for all, or one of each layer of tensors [B, L, ...], to broadcast."""
    return np.array(numbers).reshape(-1, *[1] * (ndim - 2))


def compare_rows(
    case: str,
    tensor: str,
    got: Array,
    expected: Array,
    margin: Array,
    needed: Sequence[float] = (EXPLAINED_MARGIN,),
    counted: NDArray[np.bool_] | None = None,
) -> TensorResult:
    """Compare pool row numbers for equality; a router margin below `needed` excuses a flip.

    `needed`: one for all, or one of each layer of tensors [B, L, N]. `counted`, bool of the
    tensor's shape, leaves rows out.
    """
    if not alike(got, expected):
        return _not_alike(case, tensor, got, expected)
    flipped = got != expected
    if counted is not None:
        flipped &= counted
    count = int(flipped.sum())
    if count == 0:
        return TensorResult(case, tensor, got.size, 0.0, 0.0, None, 0, None, True)
    wrong = flipped & ~(margin.astype(np.float64) < _by_layer(needed, got.ndim))
    first = tuple(int(i) for i in np.argwhere(wrong if wrong.any() else flipped)[0])
    return TensorResult(
        case,
        tensor,
        got.size,
        float(count),
        0.0,
        first,
        count - int(wrong.sum()),
        float(margin[flipped].max()),
        not wrong.any(),
        float(needed[first[1]] if len(needed) > 1 else needed[0]),
    )

"""Shape ranges of engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ckv_export.contract.spec import SIZE_END, ModelSpec, require
from ckv_export.contract.tensors import TensorSpec


@dataclass(frozen=True)
class Range:
    """Smallest, most usual and largest size of one dynamic axis."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        require(
            0 <= self.min <= self.opt <= self.max,
            f"a range must satisfy 0 <= min <= opt <= max, got {self.min}:{self.opt}:{self.max}",
        )
        require(
            self.max < SIZE_END,
            f"a range must end below {SIZE_END}, as sizes do, got {self.min}:{self.opt}:{self.max}",
        )

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read ``"8"``, ``"1:8"`` (min:max) or ``"1:4:8"`` (min:opt:max)."""
        try:
            parts = [int(part) for part in text.split(":")]
        except ValueError:
            parts = []
        require(
            1 <= len(parts) <= 3,
            f"a range is written N, MIN:MAX or MIN:OPT:MAX in whole numbers, got {text!r}",
        )
        return cls(parts[0], parts[-2] if len(parts) == 3 else parts[-1], parts[-1])

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True)
class Profile:
    """Shape ranges of one engine, an axis name each."""

    axes: Mapping[str, Range]

    @classmethod
    def default(cls, spec: ModelSpec) -> Profile:
        """Up to 64 users, the model's own history length, 64 appended events, 1024 candidates."""
        history = spec.max_len
        cached = spec.cached_events(history)
        return cls(
            {
                "B": Range(1, 1, 64),
                "S": Range(0, history, history),
                "K": Range(0, cached, cached),
                "T": Range(0, 1, min(64, history)),
                "C": Range(1, 100, 1024),
            }
        )

    def replaced(self, spec: ModelSpec, axes: Mapping[str, Range]) -> Profile:
        """The same profile with some axes given anew; K follows S unless it is given.

        Raises `SpecError` on an unknown axis.
        """
        for axis in axes:
            require(
                axis in self.axes,
                f"a profile has the axes {', '.join(self.axes)}, got {axis!r}",
            )
        changed = {**self.axes, **axes}
        if "S" in axes and "K" not in axes:
            history = axes["S"]
            ends = (spec.cached_events(n) for n in (history.min, history.opt, history.max))
            changed["K"] = Range(*ends)
        return Profile(changed)

    def with_items(self, items: int) -> Profile:
        """The same profile with the axis I of an item table of that size."""
        return Profile({**self.axes, "I": Range(items, items, items)})

    def shapes(self, tensor: TensorSpec) -> tuple[tuple[int, ...], ...]:
        """min, opt and max shape of `tensor`."""
        return tuple(
            tensor.shape({axis: getattr(r, end) for axis, r in self.axes.items()})
            for end in ("min", "opt", "max")
        )

    def to_dict(self) -> dict[str, str]:
        """``{"B": "1:1:64", ...}``."""
        return {axis: str(r) for axis, r in self.axes.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, str]) -> Profile:
        """Read `to_dict` data."""
        return cls({axis: Range.parse(text) for axis, text in data.items()})

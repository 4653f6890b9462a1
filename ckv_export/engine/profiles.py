"""Shape ranges of the contract -> an optimization profile of the library."""

from __future__ import annotations

from typing import Any

from ckv_export.contract import GraphSpec, Profile, TensorSpec
from ckv_export.errors import EngineError, nearest

Shapes = tuple[tuple[int, ...], ...]


def input_shapes(spec: GraphSpec, profile: Profile) -> dict[str, Shapes]:
    """Return min, opt and max shape of every input of `spec` by name, in the graph's order.

    Raises `EngineError` naming an input with an axis that has no range. A range that
    never leaves 0 is allowed: an engine that takes no appended events.
    """
    return {tensor.name: _shapes(tensor, profile) for tensor in spec.inputs}


def used_axes(spec: GraphSpec, profile: Profile) -> dict[str, str]:
    """Return the ranges of `profile` that the inputs of `spec` have, ``{"B": "1:1:64"}``."""
    names = {axis for tensor in spec.inputs for axis in tensor.axes}
    return {axis: text for axis, text in profile.to_dict().items() if axis in names}


def add_profile(builder: Any, config: Any, shapes: dict[str, Shapes]) -> None:
    """Give `config` one optimization profile with `shapes`; `EngineError` if it is refused."""
    profile = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in shapes.items():
        try:
            profile.set_shape(name, smallest, usual, largest)
        except ValueError as error:
            raise EngineError(f"input {name!r} can't have these shapes: {error}") from error
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"the shape ranges don't fit together: {_listing(shapes)}")


def _shapes(tensor: TensorSpec, profile: Profile) -> Shapes:
    where = f"input {tensor.name!r} [{', '.join(map(str, tensor.axes))}]"
    for axis in tensor.axes:
        if isinstance(axis, str) and axis not in profile.axes:
            raise EngineError(
                f"{where}: the profile has no range for the axis {axis!r}, only for "
                f"{', '.join(profile.axes) or 'none'}{nearest(axis, profile.axes)}"
            )
    return profile.shapes(tensor)


def _listing(shapes: dict[str, Shapes]) -> str:
    return ", ".join(f"{name} {' '.join(map(str, ends))}" for name, ends in shapes.items())

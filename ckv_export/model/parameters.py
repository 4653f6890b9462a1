"""Which tensors a model has, and whether a state dict holds exactly those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ckv_export.contract import ModelSpec
from ckv_export.errors import CheckpointError, nearest
from ckv_export.model.registry import model_class
from ckv_export.model.shapes import FREE, Shape, Shapes, feature_shapes


def expected_shapes(spec: ModelSpec) -> Shapes:
    """Name -> shape of every tensor of `spec`; `FREE` stands for any size."""
    model = model_class(spec.kind)
    model.check_options(spec)
    shapes: Shapes = {}
    for feature in spec.features:
        shapes |= feature_shapes(feature)
    return shapes | model.shapes(spec)


def check_state(spec: ModelSpec, state: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` unless `state` holds exactly the tensors of `spec`.

    Names every kind of misfit: missing and unexpected tensors with the nearest match, wrong
    shapes with both shapes.
    """
    expected = expected_shapes(spec)
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing:
        raise CheckpointError(_names("lacks the tensor", missing, unexpected))
    if unexpected:
        raise CheckpointError(_names("has the unexpected tensor", unexpected, expected))
    for name, shape in expected.items():
        _check_shape(name, tuple(state[name].shape), shape)


def _names(problem: str, names: list[str], candidates: Iterable[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the checkpoint {problem} {names[0]!r}{more}{nearest(names[0], candidates)}"


def _check_shape(name: str, got: Shape, expected: Shape) -> None:
    fits = len(got) == len(expected) and all(
        e in (FREE, g) for g, e in zip(got, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if e == FREE else str(e) for e in expected)
        raise CheckpointError(
            f"tensor {name!r} must have the shape [{wanted}] by the model configuration, "
            f"got {list(got)}"
        )

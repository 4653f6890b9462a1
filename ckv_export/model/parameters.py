"""Which tensors a model has, and whether a state dict holds exactly those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ckv_export.contract import ModelSpec
from ckv_export.errors import CheckpointError, nearest
from ckv_export.model.activations import check_activation
from ckv_export.model.registry import model_class
from ckv_export.model.shapes import FREE, Shape, Shapes, feature_shapes, shape_text


def expected_shapes(spec: ModelSpec) -> Shapes:
    """Name -> shape of every tensor of `spec`; `FREE` stands for any size above 0.

    Raises `SpecError` for an unknown kind, option or activation.
    """
    model = model_class(spec.kind)
    model.check_options(spec)
    for name in spec.dnn.activations:
        check_activation(name)
    shapes: Shapes = {}
    for feature in spec.features:
        shapes |= feature_shapes(feature)
    return shapes | model.shapes(spec)


def check_state(
    spec: ModelSpec, state: Mapping[str, Tensor], origin: Mapping[str, str] | None = None
) -> None:
    """Check that `state` is exactly what `spec` needs.

    `origin`: the name to show for a native name, where the tensor had another one in its file.
    Raises `CheckpointError` naming a missing tensor with the nearest match, one of a wrong shape or
    dtype, or those that have no place; `SpecError` as `expected_shapes` does.
    """
    expected = expected_shapes(spec)
    sizes = (
        f"attention is {spec.attention.d} wide, the item features together {spec.d_event}, the "
        f"user features {spec.d_user_features}"
    )
    for name, shape in expected.items():
        if name not in state:
            raise CheckpointError(f"tensor {name!r} is missing{nearest(name, state)}")
        _check_one((origin or {}).get(name, name), state[name], shape, sizes)
    refuse_unknown([name for name in state if name not in expected], expected)
    _check_slopes(spec, state)
    _check_variances(state, origin or {})


def _check_slopes(spec: ModelSpec, state: Mapping[str, Tensor]) -> None:
    for layer, (width, activation) in enumerate(
        zip(spec.dnn.hidden, spec.dnn.activations, strict=True)
    ):
        name = f"dnn.{layer}.activation.weight"
        if activation == "prelu" and state[name].numel() not in (1, width):
            raise CheckpointError(
                f"tensor {name!r} must hold 1 slope or one for each of {width} channels, "
                f"got {state[name].numel()}"
            )


def _check_variances(state: Mapping[str, Tensor], origin: Mapping[str, str]) -> None:
    """A root is taken of each: of less than nothing it would be NaN."""
    for name, tensor in state.items():
        if name.endswith(".var") and bool((tensor < 0).any()):
            raise CheckpointError(
                f"tensor {origin.get(name, name)!r} holds variances, which can't be negative, got "
                f"{float(tensor.min()):.3g}"
            )


def refuse_unknown(names: list[str], known: Iterable[str]) -> None:
    """Raise `CheckpointError` naming the first few `names`, unless there are none."""
    if names:
        shown = ", ".join(repr(name) for name in names[:4]) + (", ..." if len(names) > 4 else "")
        raise CheckpointError(
            f"{len(names)} of the tensors have no place in this model: {shown}"
            f"{nearest(names[0], known)}"
        )


def _check_one(name: str, tensor: Tensor, shape: Shape, sizes: str) -> None:
    if not tensor.is_floating_point():
        raise CheckpointError(f"tensor {name!r} must hold floating numbers, got {tensor.dtype}")
    got = tuple(tensor.shape)
    fits = len(got) == len(shape) and all(
        size > 0 if want == FREE else size == want for want, size in zip(shape, got, strict=True)
    )
    if not fits:
        raise CheckpointError(
            f"tensor {name!r} must be {shape_text(shape)}, got {shape_text(got)}: {sizes}"
        )

"""Which tensors a model has, and whether a state dict holds exactly those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ckv_export.contract import AttentionSpec, DnnSpec, FeatureSpec, ModelSpec
from ckv_export.errors import CheckpointError, nearest
from ckv_export.model.registry import model_class
from ckv_export.model.target_attention import Shape


def expected_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Name -> shape of every tensor of `spec`; -1 stands for a free size."""
    model = model_class(spec.kind)
    model.check_options(spec)
    shapes: dict[str, Shape] = {}
    for feature in spec.features:
        shapes |= _feature_shapes(feature)
    for layer in range(spec.num_layers):
        shapes |= _attention_shapes(spec.attention, spec.d_event, layer)
    shapes |= model.long_shapes(spec)
    return shapes | _dnn_shapes(spec.dnn, spec.d_user_features + 3 * spec.d_event)


def _feature_shapes(feature: FeatureSpec) -> dict[str, Shape]:
    name = f"embedding.{feature.name}"
    if feature.shares is not None:
        return {}
    if feature.kind in ("categorical", "sequence"):
        return {f"{name}.table": (feature.vocab_size, feature.width)}
    if feature.kind == "numeric":
        return {f"{name}.weight": (feature.width, 1)}
    return {f"{name}.weight": (feature.width, feature.length)} if feature.projected else {}


def _attention_shapes(spec: AttentionSpec, width: int, layer: int) -> dict[str, Shape]:
    prefix = f"attention.{layer}"
    shapes: dict[str, Shape] = {
        f"{prefix}.q.weight": (spec.d, width),
        f"{prefix}.o.weight": (width, spec.d),
    }
    for side in ("k", "v"):
        name, user, rows = f"{prefix}.{side}", spec.user_width(side), spec.pool_rows(side)
        shapes[f"{name}.weight"] = (user, width)
        if spec.user_bias:
            shapes[f"{name}.bias"] = (user,)
        if rows:
            shapes[f"{name}.router.weight"] = (rows, width)
            shapes[f"{name}.pool"] = (rows, spec.d - user)
            if spec.router_bias:
                shapes[f"{name}.router.bias"] = (rows,)
    return shapes


def _dnn_shapes(spec: DnnSpec, width: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for i, (out, activation) in enumerate(zip(spec.hidden, spec.activations, strict=True)):
        shapes |= {f"dnn.{i}.weight": (out, width), f"dnn.{i}.bias": (out,)}
        if spec.batch_norm:
            shapes |= {f"dnn.{i}.norm.{n}": (out,) for n in ("weight", "bias", "mean", "var")}
        if activation == "prelu":
            shapes[f"dnn.{i}.activation.weight"] = (-1,)
        if activation == "dice":
            shapes |= {f"dnn.{i}.activation.{n}": (out,) for n in ("alpha", "mean", "var")}
        width = out
    last = len(spec.hidden)
    return shapes | {f"dnn.{last}.weight": (1, width), f"dnn.{last}.bias": (1,)}


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
        e in (-1, g) for g, e in zip(got, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if e == -1 else str(e) for e in expected)
        raise CheckpointError(
            f"tensor {name!r} must have the shape [{wanted}] by the model configuration, "
            f"got {list(got)}"
        )

"""Native tensor names and shapes: what a `ModelSpec` needs in its state dict.

d, d_e, d_u, M as in SPEC; l a layer, side k or v, i a layer of the scoring network::

    embedding.<f>.table                [vocab, width]   ids, unless the feature shares a table
    embedding.<f>.weight               [width, 1] numeric, [width, length] projected vector
    attention.<l>.q.weight, .o.weight  [d, d_e], [d_e, d]
    attention.<l>.<side>.weight        [user width, d_e]
    attention.<l>.<side>.router.weight [M, d_e]         on a shared side
    attention.<l>.<side>.pool          [M, d - d_u]     on a shared side
    attention.<l>.<side>.bias, .router.bias             if the specification says so
    long.*                             the long branch, one table a kind below
    dnn.<i>.weight, .bias              hidden layers, then the layer to one score
    dnn.<i>.norm.{weight,bias,mean,var}, dnn.<i>.activation.{weight | alpha,mean,var}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from ckv_export.checkpoint.names import LONG
from ckv_export.checkpoint.tensors import shape_text
from ckv_export.contract import FeatureSpec, ModelSpec
from ckv_export.errors import CheckpointError, nearest

ACTIVATION_TENSORS = {"prelu": ("weight",), "dice": ("alpha", "mean", "var")}


@dataclass(frozen=True)
class Expected:
    """A shape, None where any size will do, and where it comes from."""

    shape: tuple[int | None, ...]
    why: str


def expected_tensors(spec: ModelSpec) -> dict[str, Expected]:
    """Every tensor of a target-attention model; of HSTU the embeddings only."""
    found = dict(_embedding(spec))
    if spec.kind in LONG:
        found |= dict(_attention(spec)) | dict(_long(spec)) | dict(_dnn(spec))
    return found


def check_tensors(
    spec: ModelSpec, state: Mapping[str, Tensor], origin: Mapping[str, str] | None = None
) -> None:
    """Check that `state` is exactly what `spec` needs.

    `origin`: the name to show for a native name, where the tensor had another one in its
    file. Raises `CheckpointError` naming a missing tensor, one of a wrong shape or type, or
    those that have no place. HSTU's own tensors are left to its model to check.
    """
    expected = expected_tensors(spec)
    for name, wanted in expected.items():
        if name not in state:
            raise CheckpointError(f"tensor {name!r} is missing{nearest(name, state)}")
        _check_one((origin or {}).get(name, name), state[name], wanted)
    if spec.kind in LONG:
        refuse_unknown([name for name in state if name not in expected], expected)


def refuse_unknown(names: list[str], known: Mapping[str, object]) -> None:
    """Raise `CheckpointError` naming the first few `names`, unless there are none."""
    if names:
        shown = ", ".join(repr(name) for name in names[:4]) + (", ..." if len(names) > 4 else "")
        raise CheckpointError(
            f"{len(names)} of the tensors have no place in this model: {shown}"
            f"{nearest(names[0], known)}"
        )


def _check_one(name: str, tensor: Tensor, wanted: Expected) -> None:
    if not tensor.is_floating_point():
        raise CheckpointError(f"tensor {name!r} must hold floating numbers, got {tensor.dtype}")
    sizes = tuple(tensor.shape)
    fits = len(sizes) == len(wanted.shape) and all(
        want in (None, got) for want, got in zip(wanted.shape, sizes, strict=True)
    )
    if not fits:
        raise CheckpointError(
            f"tensor {name!r} must be {shape_text(wanted.shape)}, got {shape_text(sizes)}: "
            f"{wanted.why}"
        )


def _embedding(spec: ModelSpec) -> Iterator[tuple[str, Expected]]:
    for feature in spec.features:
        shape = _embedding_shape(feature)
        if shape:
            part = "table" if feature.kind in ("categorical", "sequence") else "weight"
            why = f"the size of feature {feature.name!r}"
            yield f"embedding.{feature.name}.{part}", Expected(shape, why)


def _embedding_shape(feature: FeatureSpec) -> tuple[int, ...]:
    if feature.kind == "numeric":
        return (feature.width, 1)
    if feature.kind == "vector":
        return (feature.width, feature.length) if feature.projected else ()
    return () if feature.shares else (feature.vocab_size, feature.width)


def _attention(spec: ModelSpec) -> Iterator[tuple[str, Expected]]:
    attention, d_e = spec.attention, spec.d_event
    why = f"d is {attention.d}, and the item features are {d_e} wide together"
    for layer in range(spec.num_layers):
        yield f"attention.{layer}.q.weight", Expected((attention.d, d_e), why)
        yield f"attention.{layer}.o.weight", Expected((d_e, attention.d), why)
        for side in ("k", "v"):
            for part, shape in _side(spec, side).items():
                yield f"attention.{layer}.{side}.{part}", Expected(shape, why)


def _side(spec: ModelSpec, side: str) -> dict[str, tuple[int, ...]]:
    attention = spec.attention
    rows, user = attention.pool_rows(side), attention.user_width(side)
    parts: dict[str, tuple[int, ...]] = {"weight": (user, spec.d_event)}
    if attention.user_bias:
        parts["bias"] = (user,)
    if rows:
        parts |= {"router.weight": (rows, spec.d_event), "pool": (rows, attention.d - user)}
        if attention.router_bias:
            parts["router.bias"] = (rows,)
    return parts


def _long(spec: ModelSpec) -> Iterator[tuple[str, Expected]]:
    d, d_e = spec.attention.d, spec.d_event
    why = f"the long branch of {spec.kind} with d = {d} and events {d_e} wide"
    for name in LONG[spec.kind].values():
        if name == "long.rotations":
            free: tuple[None, ...] = (None, None) if spec.kind == "sdim" else (None,)
            yield name, Expected((d_e, *free), why)
        else:
            yield name, Expected((d_e, d) if name == "long.o.weight" else (d, d_e), why)


def _dnn(spec: ModelSpec) -> Iterator[tuple[str, Expected]]:
    width = spec.d_user_features + 3 * spec.d_event
    why = f"the scoring network reads {width} columns: user features, target, short, long"
    for i, (hidden, activation) in enumerate(
        zip(spec.dnn.hidden, spec.dnn.activations, strict=True)
    ):
        yield f"dnn.{i}.weight", Expected((hidden, width), why)
        yield f"dnn.{i}.bias", Expected((hidden,), why)
        parts = ("weight", "bias", "mean", "var") if spec.dnn.batch_norm else ()
        for part in parts:
            yield f"dnn.{i}.norm.{part}", Expected((hidden,), why)
        for part in ACTIVATION_TENSORS.get(activation, ()):
            yield f"dnn.{i}.activation.{part}", Expected((hidden,), why)
        width, why = hidden, f"hidden layer {i} is {hidden} wide"
    last = len(spec.dnn.hidden)
    yield f"dnn.{last}.weight", Expected((1, width), why)
    yield f"dnn.{last}.bias", Expected((1,), "there is one score")

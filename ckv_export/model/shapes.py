"""Names and shapes of the tensors that models have in common."""

from __future__ import annotations

from ckv_export.contract import AttentionSpec, DnnSpec, FeatureSpec

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

FREE = -1
"""In a shape: any size above 0."""


def shape_text(shape: Shape) -> str:
    """Write a shape as ``[2001, 16]``, with "any above 0" for a free size."""
    return f"[{', '.join('any above 0' if size == FREE else str(size) for size in shape)}]"


def feature_shapes(feature: FeatureSpec) -> Shapes:
    """``embedding.<f>.table`` [vocab, width] or ``.weight`` [width, length or 1], if it has one."""
    name = f"embedding.{feature.name}"
    if feature.shares is not None:
        return {}
    if feature.kind in ("categorical", "sequence"):
        return {f"{name}.table": (feature.vocab_size, feature.width)}
    if feature.kind == "numeric":
        return {f"{name}.weight": (feature.width, 1)}
    return {f"{name}.weight": (feature.width, feature.length)} if feature.projected else {}


def collective_shapes(spec: AttentionSpec, width: int, layer: int) -> Shapes:
    """``attention.<layer>.*`` of CollectiveKV attention over vectors of `width`."""
    prefix = f"attention.{layer}"
    shapes: Shapes = {
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


def dnn_shapes(spec: DnnSpec, width: int) -> Shapes:
    """``dnn.*`` of a scoring network whose input is `width` wide."""
    shapes: Shapes = {}
    for i, (out, activation) in enumerate(zip(spec.hidden, spec.activations, strict=True)):
        shapes |= {f"dnn.{i}.weight": (out, width), f"dnn.{i}.bias": (out,)}
        if spec.batch_norm:
            shapes |= {f"dnn.{i}.norm.{n}": (out,) for n in ("weight", "bias", "mean", "var")}
        if activation == "prelu":
            shapes[f"dnn.{i}.activation.weight"] = (FREE,)
        if activation == "dice":
            shapes |= {f"dnn.{i}.activation.{n}": (out,) for n in ("alpha", "mean", "var")}
        width = out
    last = len(spec.hidden)
    return shapes | {f"dnn.{last}.weight": (1, width), f"dnn.{last}.bias": (1,)}

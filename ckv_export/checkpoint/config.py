"""The model configuration of a native checkpoint, which people edit by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ckv_export.checkpoint.activations import activation_name
from ckv_export.checkpoint.facts import Facts
from ckv_export.checkpoint.names import KINDS, LONG, OPTIONS
from ckv_export.contract import ModelSpec
from ckv_export.errors import CheckpointError, nearest

SIMPLE = {"str": str, "bool": bool, "int": int}


def read_config(data: Any) -> ModelSpec:
    """Return the specification that `data`, plain JSON data, describes.

    Raises `SpecError` as `ModelSpec.from_dict` does, and `CheckpointError` for what that
    lets pass: values of a wrong type, an unknown kind or activation.
    """
    try:
        spec = ModelSpec.from_dict(data)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"the model configuration is damaged: {error}") from error
    for part in (spec, spec.attention, spec.dnn, *spec.features):
        _check_types(part)
    _check_kind(spec)
    _check_options(spec)
    for name in spec.dnn.activations:
        if not isinstance(name, str) or activation_name(name) != name:
            raise CheckpointError(f"the model configuration has an unknown activation {name!r}")
    return spec


def _check_types(part: Any) -> None:
    """Check the fields whose annotation is a plain type; the contract checks most others."""
    for field in dataclasses.fields(part):
        wanted = SIMPLE.get(str(field.type))
        value = getattr(part, field.name)
        if wanted is not None and type(value) is not wanted:
            raise CheckpointError(
                f"the model configuration has {field.name} {value!r}, which must be of "
                f"type {wanted.__name__}"
            )


def _check_options(spec: ModelSpec) -> None:
    options = spec.options
    if not isinstance(options, Mapping):
        raise CheckpointError(f"the model options must be a mapping, got {options!r}")
    for name, value in options.items():
        if not isinstance(value, (bool, int, float, str)):
            raise CheckpointError(f"the model option {name!r} must be a plain value, got {value!r}")
    needed = Facts(options, "the options of the model configuration")
    for name, wanted in OPTIONS.get(spec.kind, ()):
        needed.need(name, wanted)


def _check_kind(spec: ModelSpec) -> None:
    if spec.kind not in KINDS:
        raise CheckpointError(
            f"the model kind must be one of {', '.join(KINDS)}, got {spec.kind!r}"
            f"{nearest(spec.kind, KINDS)}"
        )
    if spec.kind in LONG and (spec.num_layers != 1 or spec.window is None):
        raise CheckpointError(
            f"a model of kind {spec.kind!r} has 1 layer and a window, got {spec.num_layers} "
            f"layers and the window {spec.window}"
        )

"""The model configuration of a native checkpoint, which people edit by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ckv_export.contract import ModelSpec
from ckv_export.errors import CheckpointError

SIMPLE = {"str": str, "bool": bool, "int": int}


def read_config(data: Any) -> ModelSpec:
    """Return the specification that `data`, plain JSON data, describes.

    Raises `SpecError` as `ModelSpec.from_dict` does, and `CheckpointError` for what that
    lets pass: values of a wrong type.
    """
    try:
        spec = ModelSpec.from_dict(data)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"the model configuration is damaged: {error}") from error
    for part in (spec, spec.attention, spec.dnn, *spec.features):
        _check_types(part)
    if not isinstance(spec.options, Mapping):
        raise CheckpointError(f"the model options must be a mapping, got {spec.options!r}")
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

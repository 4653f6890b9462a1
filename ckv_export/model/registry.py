"""Every kind of model by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ckv_export.contract import ModelSpec, require
from ckv_export.errors import nearest
from ckv_export.model.base import CollectiveModel
from ckv_export.model.eta import Eta
from ckv_export.model.events import EventEmbedding
from ckv_export.model.hstu import Hstu
from ckv_export.model.precision import reduce_parts
from ckv_export.model.reference import Reference
from ckv_export.model.reference_hstu import HstuReference
from ckv_export.model.sdim import Sdim
from ckv_export.model.sim import Sim
from ckv_export.model.twin import Twin

MODELS: Mapping[str, type[CollectiveModel]] = {
    "sim": Sim,
    "eta": Eta,
    "sdim": Sdim,
    "twin": Twin,
    "hstu": Hstu,
}


def model_class(kind: str) -> type[CollectiveModel]:
    """The class of models of `kind`; raises `SpecError` listing those known."""
    require(
        kind in MODELS,
        f"unknown model kind {kind!r}: known are {', '.join(MODELS)}{nearest(kind, MODELS)}",
    )
    return MODELS[kind]


def build_reference(spec: ModelSpec, state: Mapping[str, Tensor]) -> Reference:
    """The slow, unsplit model of `spec`: what every other form of it is judged by."""
    return HstuReference(spec, state) if spec.kind == "hstu" else Reference(spec, state)


def build_model(
    spec: ModelSpec,
    state: Mapping[str, Tensor],
    events: EventEmbedding | None = None,
    precision: str = "fp32",
) -> CollectiveModel:
    """The split model of `spec` with weights from a checked state dict; shares their memory.

    `events`: how it is given events; a tensor per feature unless told. `precision`: what its large
    products are computed in; raises `SpecError` where a weight is beyond the range of that.
    """
    model = model_class(spec.kind)(spec, state, events).eval()
    reduce_parts(model, precision)
    model.precision = precision
    return model

"""The first layer's pool rows of every item, looked up in HSTU's graphs instead of routed.

No other event and no time has a part in them, so that finding them once per item of the catalogue
is enough: a layer's router less for every event, and for every candidate of every request.
"""

from __future__ import annotations

from ckv_export.contract import ModelSpec, require
from ckv_export.deploy.item_table import items_of
from ckv_export.model.base import CollectiveModel
from ckv_export.model.hstu import Hstu
from ckv_export.model.registry import model_class


def require_layers(spec: ModelSpec) -> None:
    """Raise `SpecError` for a model whose cache entries depend on the item alone."""
    require(
        issubclass(model_class(spec.kind), Hstu),
        f"--item-rows is for hstu: of {spec.kind}, --item-table has all that is cached of an item",
    )


def look_up(model: CollectiveModel) -> None:
    """Let `model`, which takes ids alone, look the rows of its first layer up."""
    key = model.events.form.item_key
    assert isinstance(model, Hstu)
    assert key is not None
    model.route_items(items_of(model.spec, key))

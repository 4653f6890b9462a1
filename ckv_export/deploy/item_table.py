"""The item table: all that decode would cache of an event, once per item of the catalogue.

What a target-attention model caches depends on the item alone. With a row per item, a user's
record shrinks to the ids of the history.
"""

from __future__ import annotations

import torch

from ckv_export.contract import ModelSpec, TensorSpec, item_table_tensors, require
from ckv_export.model.base import CollectiveModel
from ckv_export.model.events import item_chunks
from ckv_export.model.registry import model_class
from ckv_export.model.target_attention import TargetAttentionModel
from ckv_export.runtimes.base import Arrays


def require_item_kind(spec: ModelSpec) -> None:
    """Raise `SpecError` unless cache entries of such a model depend on the item alone."""
    require(
        issubclass(model_class(spec.kind), TargetAttentionModel),
        f"an item table is for target-attention models: what {spec.kind} caches of an event "
        "depends on the events before it",
    )


def require_item_model(model: CollectiveModel) -> TargetAttentionModel:
    """`model`, if its cache entries depend on the item alone; raises `SpecError` otherwise."""
    require_item_kind(model.spec)
    assert isinstance(model, TargetAttentionModel)
    return model


def layout(model: TargetAttentionModel) -> list[TensorSpec]:
    """The table's tensors, axis I the item ids."""
    return item_table_tensors(model.spec, *model.key_layout())


def items_of(spec: ModelSpec, key: str) -> int:
    """I, the ids that the item feature `key` has."""
    return next(f.vocab_size for f in spec.item_features if f.name == key)


def build_item_table(model: TargetAttentionModel, items: int) -> Arrays:
    """Encode items 0 to `items` - 1 of a model that takes ids alone; a chunk at a time."""
    names = [t.name for t in layout(model)]
    parts: list[list[torch.Tensor]] = [[] for _ in names]
    with torch.inference_mode():
        for events in item_chunks(model.events, items):
            entries = model.attention.encode(events).tensors(model.cache)
            for part, tensor in zip(parts, [*entries, model.event_key(events)], strict=True):
                part.append(tensor[0])
    return {n: torch.cat(part).numpy() for n, part in zip(names, parts, strict=True)}

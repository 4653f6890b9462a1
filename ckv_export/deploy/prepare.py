"""From a checkpoint and the user's wishes to the graphs that are to be exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ckv_export.catalogue import (
    Catalogue,
    bare_catalogue,
    item_key,
    load_catalogue,
    notes_on,
)
from ckv_export.checkpoint.load import Checkpoint
from ckv_export.contract import EventForm, require
from ckv_export.deploy import item_rows, item_table
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.decode_items import DecodeItemsGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.base import CollectiveModel
from ckv_export.model.events import EventEmbedding
from ckv_export.model.registry import build_model

Graph = PrefillGraph | DecodeGraph | DecodeItemsGraph


@dataclass(frozen=True)
class FormRequest:
    """What graphs there shall be and what they take.

    `embeddings`: "inline" or "external"; `item_features`: a file to look item features up from;
    `item_key`: the feature that names an item; `item_table`: add a decode graph that takes one;
    `precision`: of their large products; `pool`: one of `manifest.POOLS`; `item_rows`: look up the
    first layer's pool rows of every item; `item_ids`: a name for what item ids mean.
    """

    embeddings: str = "inline"
    item_features: Path | None = None
    item_key: str | None = None
    item_table: bool = False
    precision: str = "fp32"
    pool: str = "constant"
    item_rows: bool = False
    item_ids: str | None = None


FEATURES_INLINE = FormRequest()


@dataclass(frozen=True)
class Prepared:
    """A split model and its graphs, prefill and decode first; item features that it looks up."""

    checkpoint: Checkpoint
    form: EventForm
    catalogue: Catalogue | None
    model: CollectiveModel
    graphs: Sequence[Graph]
    looked_up: Mapping[str, Tensor]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user must be told."""
        found = self.checkpoint.notes
        if self.catalogue is not None:
            found += notes_on(self.catalogue, self.checkpoint.spec)
        return found


def prepare(checkpoint: Checkpoint, wishes: FormRequest) -> Prepared:
    """Split the model; raises `SpecError` or `EventsError` for wishes that it can't fulfil."""
    spec, state = checkpoint.spec, checkpoint.state
    if wishes.item_table:
        item_table.require_item_kind(spec)
    if wishes.item_rows:
        item_rows.require_layers(spec)
        _require_fixed_routers(wishes)
    require(
        wishes.item_ids is None or wishes.item_table,
        "--item-ids names what the ids in users' records mean, which hold more without "
        "--item-table: give that too",
    )
    key = _key(checkpoint, wishes)
    form = EventForm(wishes.embeddings, key, _pool_inputs(wishes))
    catalogue = None if key is None else _catalogue(checkpoint, wishes, key)
    features = catalogue.features if catalogue else {}
    looked_up = {name: torch.from_numpy(values) for name, values in features.items()}
    events = EventEmbedding(spec, state, form, looked_up)
    model = build_model(spec, state, events, wishes.precision)
    if wishes.item_rows:
        item_rows.look_up(model)
    graphs: list[Graph] = [PrefillGraph(model), DecodeGraph(model)]
    if wishes.item_table:
        graphs.append(DecodeItemsGraph(item_table.require_item_model(model)))
    return Prepared(checkpoint, form, catalogue, model, graphs, looked_up)


def _key(checkpoint: Checkpoint, wishes: FormRequest) -> str | None:
    """The feature by which items are looked up, None where they aren't."""
    if wishes.item_features is not None or wishes.item_table or wishes.item_rows:
        return item_key(checkpoint.spec, wishes.item_key)
    require(
        wishes.item_key is None,
        "--item-key says which feature names an item that is looked up: give "
        "--item-features, --item-table or --item-rows too",
    )
    return None


def _catalogue(checkpoint: Checkpoint, wishes: FormRequest, key: str) -> Catalogue:
    if wishes.item_features is None:
        return bare_catalogue(checkpoint.spec, key)
    return load_catalogue(wishes.item_features, checkpoint.spec, key)


def _require_fixed_routers(wishes: FormRequest) -> None:
    require(
        wishes.pool != "refit",
        "rows that are looked up don't follow a router that is exchanged: leave out --item-rows or "
        "--pool refit",
    )


def _pool_inputs(wishes: FormRequest) -> str | None:
    """Dtype of pools as inputs of the graphs, None where they are constants."""
    if wishes.pool != "input":
        return None
    require(
        wishes.precision != "bf16",
        "pools can't be inputs of a bf16 graph, because numpy has no such numbers to bind: "
        "choose fp16 or fp32, or --pool constant",
    )
    return {"fp32": "float32", "fp16": "float16"}[wishes.precision]

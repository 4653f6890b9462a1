"""A whole SIM decode: as exported, from tables of the catalogue, and in PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from decode_case import COMPILED, EXPORTED, Calls, Case, check
from torch import Tensor, nn
from torch.nn import functional as F

from ckv_export.bench.agreement import LEAST_AGREEING
from ckv_export.bench.as_trained import TrainedDecode
from ckv_export.bench.roster import reference_scores
from ckv_export.bench.workload import Request, Sizes, draw_request
from ckv_export.contract import EventForm, ModelSpec
from ckv_export.deploy.item_table import build_item_table, items_of
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.decode_items import DecodeItemsGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.base import CollectiveModel
from ckv_export.model.events import EventEmbedding, Inputs, all_item_embeddings
from ckv_export.model.registry import build_model, build_reference
from ckv_export.model.target_attention import TargetAttentionModel
from ckv_export.onnx_export.export import export_graph
from ckv_export.onnx_export.save import save_models
from ckv_export.parity.tolerances import tolerance_of
from ckv_export.runtimes.base import Arrays
from ckv_export.runtimes.bound import BoundRunner
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner
from ckv_export.runtimes.torch import TorchRunner

KEY = "item_id"
GROUPS = ("history", "append", "candidate")
BY_ITEM = f"{EXPORTED}, item table"
BY_CANDIDATE = f"{EXPORTED}, item table and candidates' products"


def model_calls(
    model: CollectiveModel, state: Mapping[str, Tensor], case: Case, folder: Path
) -> Calls:
    """One request through every form, checked against the unsplit reference."""
    spec, rng = model.spec, np.random.default_rng(0)
    catalogue = draw_catalogue(spec, rng)
    prefill, decode = PrefillGraph(model), DecodeGraph(model)
    request = draw_known(model, catalogue, case, rng)
    with TorchRunner(prefill, prefill.io) as cache:
        made = cache.infer(request.prefill_feeds(prefill.io, spec))
    feeds = request.decode_feeds(decode.io, made)
    reference = build_reference(spec, state)
    trained = TrainedDecode(reference)
    save_models({"decode": export_graph(decode)}, folder)
    runners = {
        EXPORTED: OnnxRuntimeRunner(folder / "decode.onnx", decode.io, threads=1),
        "PyTorch eager": TorchRunner(decode, decode.io),
        COMPILED: TorchRunner(torch.compile(decode, dynamic=False), decode.io),
        "PyTorch eager, as trained": TorchRunner(trained, decode.io),
        f"{COMPILED}, as trained": TorchRunner(torch.compile(trained, dynamic=False), decode.io),
        **table_runners(spec, state, catalogue, folder),
    }
    calls: Calls = {}
    for name, runner in runners.items():
        given = feeds if name not in (BY_ITEM, BY_CANDIDATE) else request.inputs
        given = {t.name: given[t.name] for t in runner.io.inputs}
        runner.activate()
        calls[name] = lambda runner=runner, given=given: runner.infer(given)["score"]
    expected = reference_scores(reference, request.inputs)
    check(calls, expected, tolerance_of("score").absolute, LEAST_AGREEING)
    return calls


def draw_catalogue(spec: ModelSpec, rng: np.random.Generator) -> Arrays:
    """Each item feature but the id, of every id."""
    items = items_of(spec, KEY)
    drawn: Arrays = {}
    for feature in spec.embedded_item_features:
        if feature.kind == "categorical" and feature.name != KEY:
            drawn[feature.name] = rng.integers(1, feature.vocab_size, items).astype(np.int32)
        elif feature.kind == "vector":
            drawn[feature.name] = rng.standard_normal((items, feature.length)).astype(np.float32)
    return drawn


def draw_known(
    model: CollectiveModel, catalogue: Arrays, case: Case, rng: np.random.Generator
) -> Request:
    """A request whose items have the features of the catalogue."""
    graphs = {"prefill": PrefillGraph(model).io, "decode": DecodeGraph(model).io}
    sizes = Sizes(1, case.history, 1, case.candidates)
    request = draw_request(model.spec, graphs, sizes, rng)
    for group in GROUPS:
        ids = request.inputs[f"{group}_{KEY}"]
        for name, values in catalogue.items():
            request.inputs[f"{group}_{name}"] = values[ids]
    return request


class FromTable(nn.Module):
    """In the place of a projection of candidates: its columns of their rows."""

    def __init__(self, start: int, width: int) -> None:
        super().__init__()
        self.start, self.width = start, width

    def forward(self, rows: Tensor) -> Tensor:
        return rows.narrow(-1, self.start, self.width)


class CandidateTable(DecodeItemsGraph):
    """Decode with an item table whose candidates' four products are looked up by item, too."""

    def __init__(self, model: TargetAttentionModel) -> None:
        super().__init__(copy.deepcopy(model))
        model = self.model
        events = model.embedded
        every = torch.arange(items_of(model.spec, KEY), dtype=torch.int32)
        embeddings = all_item_embeddings(model.events, every)
        columns, start = [], 0
        for owner, name in (
            (model, "gsu_target"),
            (model.search, "query"),
            (model.attention, "query"),
            (model.dnn.first, "target"),
        ):
            columns.append(owner.get_submodule(name)(embeddings))
            owner.register_module(name, FromTable(start, columns[-1].shape[-1]))
            start += columns[-1].shape[-1]
        self.rows = nn.Parameter(torch.cat(columns, dim=-1), requires_grad=False)

        def embedded(inputs: Inputs, group: str) -> Tensor:
            if group != "candidate":
                return events(inputs, group)
            return F.embedding(inputs[f"candidate_{KEY}"], self.rows)

        model.embedded = embedded


def table_runners(
    spec: ModelSpec, state: Mapping[str, Tensor], catalogue: Arrays, folder: Path
) -> dict[str, BoundRunner]:
    """Decode by item ids, tables bound once."""
    features = {name: torch.from_numpy(values) for name, values in catalogue.items()}
    events = EventEmbedding(spec, state, EventForm(item_key=KEY), features)
    model = build_model(spec, state, events)
    assert isinstance(model, TargetAttentionModel)
    graphs = {BY_ITEM: DecodeItemsGraph(model), BY_CANDIDATE: CandidateTable(model)}
    table = build_item_table(model, items_of(spec, KEY))
    runners = {}
    for place, (name, graph) in enumerate(graphs.items()):
        save_models({f"tables{place}": export_graph(graph)}, folder)
        runner = OnnxRuntimeRunner(folder / f"tables{place}.onnx", graph.io, threads=1)
        runners[name] = BoundRunner(runner, table)
    return runners

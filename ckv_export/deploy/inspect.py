"""What a model or bundle caches, measured on events."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ckv_export.cache import (
    CacheReport,
    PoolOccupancy,
    Spectrum,
    SpectrumStream,
    cache_sizes,
    occupancy_of_counts,
    row_counts,
)
from ckv_export.cache.item_table import row_bytes
from ckv_export.cache.pool_file import load_pools
from ckv_export.catalogue import has_item_key, item_key
from ckv_export.checkpoint.load import is_checkpoint, load_checkpoint
from ckv_export.contract import (
    FEATURES,
    EventForm,
    GraphSpec,
    ModelSpec,
    item_table_tensors,
)
from ckv_export.deploy.item_table import items_of, layout
from ckv_export.errors import BundleError
from ckv_export.events import event_tensors, load_events
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.manifest import Manifest, bundle_in, is_bundle, open_bundle
from ckv_export.model.base import CollectiveModel
from ckv_export.model.fingerprint import fingerprint
from ckv_export.model.registry import build_model
from ckv_export.model.target_attention import TargetAttentionModel
from ckv_export.onnx_export.functions import DOMAIN, INPUTS
from ckv_export.parity.inputs import CaseSize, generate_case
from ckv_export.runtimes.base import Array, Arrays, Runner
from ckv_export.runtimes.bf16 import RoundedBf16Runner
from ckv_export.runtimes.bound import BoundRunner
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner
from ckv_export.runtimes.torch import TorchRunner

Pools = Mapping[tuple[int, str], Array]

SIDES = ("k", "v")
_GENERATED_USERS = 64
_BATCH = 16


@dataclass(frozen=True)
class Subject:
    """A model or bundle under inspection: its prefill graph, and its pools by (layer, side).

    The pools are those of the decode graph: [M, d - d_u], silu already applied.
    """

    name: str
    spec: ModelSpec
    form: EventForm
    fingerprint: str
    prefill: Runner
    pools: Pools
    item_table: ItemTableCost | None


@dataclass(frozen=True)
class ItemTableCost:
    """What an item table of this model weighs: ids it has rows for, and bytes of a row."""

    items: int
    bytes_per_item: int

    def to_dict(self) -> dict[str, int]:
        """Plain JSON data, the product included."""
        return dataclasses.asdict(self) | {"bytes": self.items * self.bytes_per_item}


def open_subject(path: Path, weights: str | None = None, params: str | None = None) -> Subject:
    """Open a bundle (a folder with a manifest) or any checkpoint; raises `InputError`."""
    if is_bundle(path) or (bundle_in(path) and not is_checkpoint(path)):
        manifest = open_bundle(path)
        if weights is not None or params is not None:
            raise BundleError(
                f"{path} is a bundle: --weights and --params are for run folders only"
            )
        given = load_pools(path, manifest)
        # On a CPU ONNX Runtime has no bf16 products.
        kind = RoundedBf16Runner if manifest.precision == "bf16" else OnnxRuntimeRunner
        runner = BoundRunner(kind(path / "prefill.onnx", manifest.graph("prefill")), given)
        pools = _pools_given(given) or _bundle_pools(path / "decode.onnx", manifest.model)
        return Subject(
            manifest.name,
            manifest.model,
            manifest.form,
            manifest.fingerprint,
            runner,
            pools,
            _bundle_table(manifest),
        )
    checkpoint = load_checkpoint(path, weights=weights, params=params)
    identity = fingerprint(checkpoint.spec, checkpoint.state)
    model = build_model(checkpoint.spec, checkpoint.state)
    graph = PrefillGraph(model)
    pools = {key: pool.numpy() for key, pool in model.pools().items()}
    prefill = TorchRunner(graph, graph.io)
    table = _model_table(model)
    return Subject(checkpoint.name, checkpoint.spec, FEATURES, identity, prefill, pools, table)


def _bundle_table(manifest: Manifest) -> ItemTableCost | None:
    table = manifest.item_table
    if table is None:
        return None
    layout = item_table_tensors(manifest.model, table.key_width, table.key_dtype)
    return ItemTableCost(table.items, row_bytes(layout))


def _model_table(model: CollectiveModel) -> ItemTableCost | None:
    """What `--item-table` would write, were the first categorical item feature the key."""
    spec = model.spec
    if not isinstance(model, TargetAttentionModel) or not has_item_key(spec):
        return None
    return ItemTableCost(items_of(spec, item_key(spec)), row_bytes(layout(model)))


def _bundle_pools(decode: Path, spec: ModelSpec) -> Pools:
    model = onnx.load(str(decode), load_external_data=False)
    tensors = {t.name: t for t in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.domain == DOMAIN]
    sides = [side for side in SIDES if spec.attention.shared(side)]
    pools = {}
    for layer, node in enumerate(nodes):
        inputs = INPUTS[node.op_type]
        for side in sides:
            name = f"pool_{side}" if f"pool_{side}" in inputs else "pool"
            tensor = tensors[node.input[inputs.index(name)]]
            pool = numpy_helper.to_array(tensor, base_dir=str(decode.parent))
            pools[layer, side] = pool.astype(np.float32)
    return pools


def _pools_given(pools: Arrays) -> Pools:
    """Pools by input name, ``pool_<side>_<layer>``, by (layer, side)."""
    parts = {name: name.split("_") for name in pools}
    return {(int(layer), side): pools[name] for name, (_, side, layer) in parts.items()}


def report_on(
    subject: Subject, events_file: Path | None, seed: int, user_dtype: str, users: int | None
) -> CacheReport:
    """Sizes, pool occupancy (only on events that were given) and spectrum of what is cached."""
    sizes = cache_sizes(subject.spec, user_dtype, form=subject.form, users=users)
    if events_file is None:
        events = _generated(subject, seed)
        described = f"generated, {_GENERATED_USERS} users, uniform ids, seed {seed}"
    else:
        events = load_events(events_file, subject.spec, subject.form)
        described = f"file {events_file.name}, {events['event_mask'].shape[0]} users"
    measurement = Measurement(subject)
    measurement.run(events)
    occupancy = None if events_file is None else measurement.occupancy()
    return CacheReport(sizes, occupancy, measurement.spectra(), described)


def _generated(subject: Subject, seed: int) -> Arrays:
    spec, rng = subject.spec, np.random.default_rng(seed)
    size = CaseSize("inspect", _GENERATED_USERS, min(spec.max_len, 200), 0, 1)
    given = generate_case(spec, size, rng).inputs
    if subject.form.embeddings == "external":
        shape = (*given["history_mask"].shape, spec.d_event)
        given["history_embedding"] = rng.standard_normal(shape).astype(np.float32)
    names = (tensor.name for tensor in event_tensors(spec, subject.form))
    return {name: given[name.replace("event_", "history_", 1)] for name in names}


def _no_past(io: GraphSpec, users: int) -> Arrays:
    """Empty ``past_*`` inputs of a prefill graph that has them."""
    past = [t for t in io.inputs if t.name.startswith("past_")]
    return {t.name: np.zeros(t.shape({"B": users, "K": 0}), t.dtype) for t in past}


class Measurement:
    """Pool use and spectra, summed up over batches of users."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        attention = subject.spec.attention
        self.streams = {}
        self.counts: dict[str, NDArray[np.int64]] = {}
        for layer, side in itertools.product(range(subject.spec.num_layers), SIDES):
            width = attention.d - attention.user_width(side) if attention.shared(side) else None
            self.streams[layer, side] = SpectrumStream(
                attention.d, side=side, layer=layer, pool_width=width
            )
            if attention.shared(side):
                shape = (subject.spec.num_layers, attention.pool_rows(side))
                self.counts[side] = np.zeros(shape, np.int64)

    def run(self, events: Arrays) -> None:
        """Prefill every user's events and take them in."""
        with self.subject.prefill as prefill:
            for start in range(0, len(events["event_mask"]), _BATCH):
                batch = {
                    name: np.ascontiguousarray(a[start : start + _BATCH])
                    for name, a in events.items()
                }
                batch |= _no_past(prefill.io, batch["event_mask"].shape[0])
                self._add(prefill.infer(batch), batch["event_mask"].astype(np.bool_))

    def _add(self, cache: Arrays, mask: NDArray[np.bool_]) -> None:
        for (layer, side), stream in self.streams.items():
            stream.add_batch(self._vectors(cache, layer, side), mask)
        for side in self.counts:
            rows = self.subject.spec.attention.pool_rows(side)
            index = cache[f"cache_{side}_index"].astype(np.int64)
            self.counts[side] = self.counts[side] + row_counts(index, mask, rows=rows, side=side)

    def _vectors(self, cache: Arrays, layer: int, side: str) -> NDArray[np.float32]:
        """Keys or values [N, S, d] as attention uses them."""
        user = cache[f"cache_{side}_user"][:, layer]
        if side in self.counts:
            rows = self.subject.pools[layer, side][cache[f"cache_{side}_index"][:, layer]]
            user = np.concatenate([rows, user], axis=-1)
        return user.astype(np.float32)

    def occupancy(self) -> tuple[PoolOccupancy, ...]:
        """Use of each pool."""
        return tuple(
            occupancy_of_counts(counts, side=side, layer=layer)
            for side, layers in self.counts.items()
            for layer, counts in enumerate(layers)
        )

    def spectra(self) -> tuple[Spectrum, ...]:
        """Spectrum of each layer's keys and values."""
        return tuple(stream.result() for stream in self.streams.values())

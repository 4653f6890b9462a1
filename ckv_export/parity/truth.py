"""Who is believed: the reference model, or the fp32 graphs of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ckv_export.cache.pool_file import load_pools
from ckv_export.contract import CacheSpec, EventForm, ModelSpec
from ckv_export.manifest import Manifest
from ckv_export.model.reference import Reference
from ckv_export.parity import expected
from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.inputs import Case
from ckv_export.parity.probe import GraphProbe, top_margin
from ckv_export.parity.replay import decode_feeds, kept, prefill_feeds
from ckv_export.runtimes.base import Array, Arrays
from ckv_export.runtimes.bound import without

RECORDED = "the unsplit PyTorch reference, as recorded in the bundle"


class Truth(Protocol):
    """Answers requests by recomputing everything; `name` says who it is."""

    @property
    def name(self) -> str:
        """For the report."""

    def record(self, cases: Sequence[Case]) -> list[ExpectedCase]:
        """The right outputs of each case."""


class ReferenceTruth:
    """The unsplit reference; cases name the model's features, whatever the graphs' form."""

    def __init__(self, reference: Reference, form: EventForm, source: str) -> None:
        self.reference, self.form = reference, form
        self.name = f"the unsplit PyTorch reference of {source}"

    def record(self, cases: Sequence[Case]) -> list[ExpectedCase]:
        """See `expected.record`."""
        return expected.record(self.reference, cases, self.form)


class GraphTruth:
    """A bundle's own graphs on ONNX Runtime: prefill of all events, then decode of none.

    Cases are in the graphs' form. Router margins come from the graphs' logits; how close a long
    branch's selection was isn't known, so that none of its scores is excused.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.manifest, self.pools = manifest, load_pools(folder, manifest)
        self.probe = GraphProbe(folder / "prefill.onnx", precision=manifest.precision)
        self.decode = GraphProbe(folder / "decode.onnx", precision=manifest.precision)
        self.decode_io = without(manifest.graph("decode"), self.pools)
        self.name = (
            f"full recomputation by the {manifest.precision} graphs of {folder} on ONNX Runtime"
        )

    def record(self, cases: Sequence[Case]) -> list[ExpectedCase]:
        """Prefill history and appended events together, and score with nothing appended."""
        return [self._record_one(case) for case in cases]

    def _record_one(self, case: Case) -> ExpectedCase:
        spec = self.manifest.model
        whole = ExpectedCase(all_cached(case), self._no_past(case), {})
        graph = without(self.manifest.graph("prefill"), self.pools)
        feeds = prefill_feeds(graph, whole, slice(0, None)) | self.pools
        cache, margins = self._prefill(feeds)
        given = decode_feeds(self.decode_io, whole, kept(spec, cache)) | self.pools
        score, selection = self._score(given)
        outputs: Arrays = {"score": score}
        for name, array in cache.items():
            _divide(outputs, name, array, case.cached)
        divided: Arrays = {}
        for name, array in margins.items():
            _divide(divided, name, array, case.cached)
        return ExpectedCase(case, outputs, divided, selection)

    def _score(self, feeds: Arrays) -> tuple[Array, Array | None]:
        """Scores and, of a model that routes candidates as events, their least margin [B, C]."""
        spec = self.manifest.model
        names = _logits(self.decode, spec) if spec.layers_see_history else {}
        found = self.decode.run(feeds, ["score", *names])
        margins = [top_margin(found[n][..., :rows]) for n, (_, _, rows) in names.items()]
        return found["score"], np.min(margins, axis=0) if margins else None

    def _no_past(self, case: Case) -> Arrays:
        users = case.inputs["history_mask"].shape[0]
        tensors = CacheSpec.of(self.manifest.model).named("cache", "K")
        return {t.name: np.zeros(t.shape({"B": users, "K": 0}), t.dtype) for t in tensors}

    def _prefill(self, feeds: Arrays) -> tuple[Arrays, Arrays]:
        spec = self.manifest.model
        outputs = [t.name for t in self.manifest.graph("prefill").outputs]
        logits = _logits(self.probe, spec)
        found = self.probe.run(feeds, [*outputs, *logits])
        # Without a layer's logits nothing is known of its rows, and no flip of them is excused.
        margins: Arrays = {
            name: np.full(found[name].shape, np.inf, np.float32)
            for name in outputs
            if name.endswith("_index")
        }
        for name, (side, layer, rows) in logits.items():
            margins[f"cache_{side}_index"][:, layer] = top_margin(found[name][..., :rows])
        return {name: found[name] for name in outputs}, margins


def _logits(probe: GraphProbe, spec: ModelSpec) -> dict[str, tuple[str, int, int]]:
    """The tensors of router logits: side, layer and pool rows of each."""
    return {
        name: (side, layer, spec.attention.pool_rows(side))
        for side in "kv"
        for layer, name in probe.router_logits(side).items()
    }


def _divide(into: Arrays, name: str, array: Array, cached: int) -> None:
    into[name] = array[:, :, :cached]
    into[name.replace("cache_", "append_", 1)] = array[:, :, cached:]


def all_cached(case: Case) -> Case:
    """The same request with every event in the history and none appended."""
    return cut(case, 0, case.cached + case.appended, 0)


def cut(case: Case, start: int, cached: int, appended: int) -> Case:
    """The request of the events from `start` on: so many cached, so many appended behind them."""
    inputs = dict(case.inputs)
    for name in case.inputs:
        group, _, rest = name.partition("_")
        if group == "history":
            joined = np.concatenate([inputs[name], case.inputs[f"append_{rest}"]], axis=1)
            middle = start + cached
            inputs[name] = np.ascontiguousarray(joined[:, start:middle])
            inputs[f"append_{rest}"] = np.ascontiguousarray(joined[:, middle : middle + appended])
    return Case(case.name, inputs, case.labels)

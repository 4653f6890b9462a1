"""One benchmark from start to result: open the ways, check their scores, measure, search rates."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ckv_export.bench import roster
from ckv_export.bench.agreement import Agreement, agreement
from ckv_export.bench.allocator import keep_freed_memory
from ckv_export.bench.bundle_ways import bundle_ways
from ckv_export.bench.bundles import open_bundles
from ckv_export.bench.cuda_ways import cuda_ways
from ckv_export.bench.describe import (
    beside_dict,
    bundle_dict,
    cycling,
    fetched_bytes,
    settings_dict,
    way_dict,
)
from ckv_export.bench.measure import in_turn
from ckv_export.bench.pinned import PinnedStore, require_gpu
from ckv_export.bench.rate import highest_rate
from ckv_export.bench.request import BenchRequest
from ckv_export.bench.stored import FileStore, Store
from ckv_export.bench.traffic import bucket_of, buckets, history_lengths, padding_waste
from ckv_export.bench.ways import (
    LeftOut,
    Prepared,
    Way,
    failure,
    last_entries,
    open_all,
    require_named,
)
from ckv_export.bench.workload import Request, Sizes, draw_request
from ckv_export.errors import BundleError, CkvError
from ckv_export.manifest import Manifest
from ckv_export.runtimes.base import Arrays
from ckv_export.stages import Stages

SCHEMA_VERSION = 1

Calls = Mapping[str, Callable[[], object]]
"""By the name of a way."""


def run_bench(
    request: BenchRequest, stages: Stages, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure; returns what `result.schema.json` describes, `environment` as it is given.

    From then on the process keeps memory that it frees (`keep_freed_memory`). Raises
    `ParityFailure` where a way's scores are not the model's, before anything is timed.
    """
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as opened:
        bench = _Bench(request, Path(scratch), stages, environment)
        opened.callback(bench.close)
        bench.open()
        return bench.measure()


@dataclass(frozen=True)
class _Ready:
    """The ways that serve a request, the worst error of each, and the ways that can't."""

    prepared: list[Prepared]
    errors: Mapping[str, float]
    failed: list[LeftOut]


class _Bench:
    """The state of one run."""

    def __init__(
        self,
        request: BenchRequest,
        scratch: Path,
        stages: Stages,
        environment: Mapping[str, Any],
    ) -> None:
        self.request, self.scratch, self.stages = request, scratch, stages
        self.environment = environment
        if request.source == "pinned":
            require_gpu()
        with stages.stage("verify hashes"):
            self.bundles = open_bundles(request.bundle, request.beside)
        self.manifest: Manifest = self.bundles[0].manifest
        self.spec = self.manifest.model
        self.rng = np.random.default_rng(request.seed)
        self.graphs = {name: self.manifest.graph(name) for name in ("prefill", "decode")}
        self.weights: roster.Weights | None = None
        self.ways: list[Way] = []
        self.left_out: list[LeftOut] = []
        # Of all stores: one for each request of the traffic would be more than a process may open.
        self.file = (scratch / "stores.bin").open("w+b")

    def open(self) -> None:
        """Find and load the ways."""
        request = self.request
        if request.checkpoint is not None:
            with self.stages.stage("load checkpoint"):
                self.weights = roster.load_weights(
                    request.checkpoint, self.manifest, request.weights, request.params
                )
        with self.stages.stage("load runtimes") as stage:
            given = self._found()
            require_named(request.only, given, self.left_out)
            wanted = [w for w in given if w is given[0] or request.only in w.name]
            if self.weights is not None:
                roster.export_full_decode(self.weights.model, self.scratch, wanted)
            self.ways, failed = open_all(wanted)
            self.left_out += failed
            for way in failed:
                if way.name == given[0].name:
                    raise BundleError(
                        f"{way.name} is what all else is measured by, and can't run here: "
                        f"{way.reason}"
                    )
            stage.remark = f"{len(self.ways)} ways, {len(self.left_out)} left out"

    def _found(self) -> list[Way]:
        """Every way there may be, the first bundle's own first; notes what there isn't."""
        request, ways = self.request, list[Way]()
        for bundle in self.bundles:
            more, without = bundle_ways(bundle, request.threads, request.floats)
            ways += more
            self.left_out += without
        if self.weights is None:
            self.left_out += roster.without_weights()
            return ways
        given = (self.weights, ways[0], self.scratch, request.threads, request.floats)
        ways += roster.weighted_ways(*given)
        self.left_out += roster.without_training_code(self.manifest.model)
        more, without = cuda_ways(self.weights, ways[0], self.scratch, request.floats)
        self.left_out += without
        return ways + more

    def close(self) -> None:
        """Free everything."""
        self.file.close()
        for way in self.ways:
            way.close()

    def measure(self) -> dict[str, Any]:
        """All parts of the result."""
        ways = self._measured_ways()
        sweep, traffic = self._sweep(), self._traffic()  # both may leave out more ways
        return {
            "schema_version": SCHEMA_VERSION,
            "environment": self.environment,
            "bundle": bundle_dict(self.manifest),
            "beside": [beside_dict(bundle) for bundle in self.bundles[1:]],
            "settings": settings_dict(self.request),
            "ways": ways,
            "left_out": [{"name": w.name, "reason": w.reason} for w in self.left_out],
            "sweep": sweep,
            "traffic": traffic,
        }

    def _measured_ways(self) -> list[dict[str, Any]]:
        """Every way that serves the request, with its timings; the others are left out."""
        with self.stages.stage("check scores") as stage:
            ready = self._ready(self._draw(self.request.sizes))
            self._leave_out(ready.failed)
            stage.remark = f"worst difference {max(ready.errors.values(), default=0.0):.1e}"
        prepared, errors = ready.prepared, ready.errors
        phases = self._phases(prepared, "measure")
        rates = self._rates(prepared)
        return [
            way_dict(p, errors[p.way.name])
            | {"phases": phases[p.way.name], "rate": rates.get(p.way.name)}
            for p in prepared
        ]

    # -- preparing

    def _draw(self, sizes: Sizes, lengths: tuple[int, ...] | None = None) -> Request:
        return draw_request(self.spec, self.graphs, sizes, self.rng, lengths)

    def _ready(self, request: Request) -> _Ready:
        """Every way with the request, served once; raises `ParityFailure` for wrong scores."""
        prepared, failed = self._prepared(request)
        checked = self._checked(prepared)
        return _Ready(checked.kept(prepared), checked.errors, [*failed, *checked.failed])

    def _prepared(self, request: Request) -> tuple[list[Prepared], list[LeftOut]]:
        """The request for every way, its cache made once by the first way's prefill.

        And the ways that have no room for what they keep of its users.
        """
        prefill = self.ways[0].prefill
        assert prefill is not None
        made = prefill.infer(request.prefill_feeds(prefill.io, self.spec))
        compact = last_entries(self.spec, made)
        prepared, failed = [], []
        for way in self.ways:
            try:
                prepared.append(self._prepared_one(way, request, compact))
            except CkvError as error:
                if way is self.ways[0]:
                    raise
                failed.append(LeftOut(way.name, str(error)))
        return prepared, failed

    def _prepared_one(self, way: Way, request: Request, compact: Arrays) -> Prepared:
        store = None
        if way.cache in ("compact", "full, fetched"):
            store = way.store_of(compact, request.real, self._store)
        kept = way.kept(compact)
        cache = way.decode.place(kept) if way.cache == "full, held" else kept
        return Prepared(way, self.spec, request, cache, store)

    def _store(self, way: Way, blobs: Sequence[bytes]) -> Store:
        if self.request.source == "file":
            return FileStore(blobs, self.file)
        return PinnedStore(blobs) if self.request.source == "pinned" else Store(blobs)

    def _leave_out(self, failed: Sequence[LeftOut]) -> None:
        """Close ways that loaded and then couldn't serve a request."""
        names = {way.name for way in failed}
        left = [way for way in self.ways if way.name in names]
        self.ways = [way for way in self.ways if way.name not in names]
        for way in left:
            way.close(self.ways)
        self.left_out += failed

    def _checked(self, prepared: Sequence[Prepared]) -> Agreement:
        """Each way's worst error, timing its first call; raises `ParityFailure`."""
        expected = None
        if self.weights is not None:
            inputs = prepared[0].request.inputs
            expected = roster.reference_scores(self.weights.reference, inputs)
        return agreement(prepared, self.request.floats, expected)

    # -- measuring

    def _phases(
        self, prepared: Sequence[Prepared], title: str, where: str = ""
    ) -> dict[str, dict[str, Any]]:
        """Way -> phase -> timing; the ways of a phase take turns.

        A way that has no such phase for these sizes is left out of it, under the name of both and
        `where`.
        """
        by_phase: dict[str, dict[str, Callable[[], object]]] = {}
        for one in prepared:
            for phase, call in one.calls():
                if phase in self.request.phases:
                    by_phase.setdefault(phase, {})[one.way.name] = call
        timings: dict[str, dict[str, Any]] = {one.way.name: {} for one in prepared}
        users = prepared[0].request.sizes.batch
        for phase, given in by_phase.items():
            with self.stages.stage(f"{title}: {phase}") as stage:
                calls = self._possible(given, f"{phase}{where}")
                for name, timing in in_turn(calls, self.request.settings).items():
                    timings[name][phase] = timing.to_dict(users)
                stage.remark = f"{len(calls)} ways"
                if calls:
                    first = timings[next(iter(calls))][phase]
                    stage.remark += f"; first p50 {first['p50_ms']:.2f} ms"
        return timings

    def _possible(self, calls: Calls, phase: str) -> Calls:
        """Those that run, called once: an engine may not be built for one candidate, say."""
        failed = {}
        for name, call in calls.items():
            try:
                call()
            except CkvError as error:
                failed[name] = str(error)
        self.left_out += [LeftOut(f"{name}, {phase}", why) for name, why in failed.items()]
        return {name: call for name, call in calls.items() if name not in failed}

    def _rates(self, prepared: Sequence[Prepared]) -> dict[str, Any]:
        bound = self.request.bound
        if bound is None:
            return {}
        found = {}
        for one in prepared:
            with self.stages.stage(f"rate: {one.way.name}") as stage:
                rate = highest_rate(one.score, bound, self.request.rate_seconds, self.request.seed)
                found[one.way.name] = rate.to_dict()
                within = f"within {1000 * bound:g} ms"
                stage.remark = (
                    f"{rate.rate:.1f} requests/s {within}"
                    if rate.tried
                    else f"no rate low enough to be {within} could be tried"
                )
        return found

    def _sweep(self) -> list[dict[str, Any]]:
        points = []
        for axis, values in self.request.sweep.items():
            for value in values:
                sizes = self.request.sizes.replaced(**{axis: value})
                ways = self._point(sizes, f"{axis} {value}")
                points.append({"axis": axis, "value": value, "ways": ways})
        return points

    def _point(self, sizes: Sizes, title: str) -> list[dict[str, Any]]:
        """Each way at a point of a sweep; frees what it has placed for it."""
        ready = self._ready(self._draw(sizes))
        self.left_out += [LeftOut(f"{w.name} at {title}", w.reason) for w in ready.failed]
        timings = self._phases(ready.prepared, title, f" at {title}")
        return [
            {"name": p.way.name, "fetched_bytes": fetched_bytes(p), "phases": timings[p.way.name]}
            for p in ready.prepared
        ]

    def _traffic(self) -> dict[str, Any] | None:
        """Requests of drawn lengths, one user each, in the shapes of their buckets."""
        if not self.request.traffic:
            return None
        sizes = buckets(self.request.sizes.history)
        lengths = history_lengths(self.request.traffic, self.request.sizes.history, self.rng)
        # A compiled program serves one shape: torch.compile would compile within the measurement.
        fixed = [way for way in self.ways if "torch.compile" not in way.name]
        prepared: dict[str, list[Prepared]] = {way.name: [] for way in fixed}
        failed: dict[str, str] = {}
        for length in lengths:
            shape = self.request.sizes.replaced(batch=1, history=bucket_of(length, sizes))
            ready, without = self._prepared(self._draw(shape, (length,)))
            failed |= {w.name: w.reason for w in without if w.name in prepared}
            for one in ready:
                if one.way.name in prepared:
                    prepared[one.way.name].append(one)
        for ones in prepared.values():
            failed |= failure(ones)
        for name, reason in failed.items():
            del prepared[name]
            self.left_out.append(LeftOut(f"{name} in traffic", reason))
        with self.stages.stage(f"traffic: {len(lengths)} requests"):
            calls = {name: cycling(ones) for name, ones in prepared.items()}
            # A window serves each of them once: of some alone, it would be of other traffic.
            timings = in_turn(calls, replace(self.request.settings, window=len(lengths)))
        return {
            "lengths": lengths,
            "buckets": list(sizes),
            "waste": padding_waste(lengths, sizes).to_dict(),
            "ways": [{"name": n, "request": t.to_dict(1)} for n, t in timings.items()],
        }

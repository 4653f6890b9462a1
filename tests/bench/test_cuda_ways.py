"""The rivals on a GPU: here on the CPU, through the same code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ckv_testing.bundles import manifest_of
from ckv_testing.exports import Export

from ckv_export.bench import cuda_ways
from ckv_export.bench.bundle_ways import bundle_ways
from ckv_export.bench.bundles import BenchedBundle
from ckv_export.bench.describe import way_dict
from ckv_export.bench.pinned import PinnedStore
from ckv_export.bench.roster import ON_CUDA, Weights
from ckv_export.bench.stored import Store
from ckv_export.bench.ways import LeftOut, Prepared, Way, last_entries
from ckv_export.bench.workload import Request, Sizes, draw_request
from ckv_export.contract import CacheSpec
from ckv_export.errors import ExportError
from ckv_export.model.registry import build_model, build_reference
from ckv_export.runtimes import onnxruntime as ort
from ckv_export.runtimes.base import Feeds, Placed, RunnerMetadata
from ckv_export.runtimes.torch import TorchRunner

pytestmark = pytest.mark.usefixtures("one_thread", "unpinned")

SIZES = Sizes(batch=2, history=7, appended=1, candidates=4)
TITLES = ("PyTorch eager", "torch.compile", "torch.compile with CUDA graphs")


@pytest.fixture
def made(exported: Callable[[str], Export]) -> Export:
    return exported("sim")


@pytest.fixture
def first(made: Export) -> Iterator[Way]:
    bundle = BenchedBundle(made.folder, manifest_of(made))
    way = bundle_ways(bundle, 1, "fp32")[0][0]
    way.open()
    yield way
    way.close()


@pytest.fixture
def request_of(made: Export, rng: np.random.Generator) -> Request:
    """Two users, one of them with fewer events than the other."""
    manifest = manifest_of(made)
    graphs = {name: manifest.graph(name) for name in ("prefill", "decode")}
    return draw_request(made.spec, graphs, SIZES, rng, lengths=(7, 3))


@pytest.fixture
def compact(made: Export, first: Way, request_of: Request) -> dict[str, np.ndarray]:
    feeds = request_of.prefill_feeds(first.prefill.io, made.spec)
    return last_entries(made.spec, first.prefill.infer(feeds))


@pytest.fixture
def ways(made: Export, first: Way, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Way]]:
    """Those of `torch_ways`, loaded, by name; without compiling."""
    asked: list[Any] = []

    def compile_(module: Any, **options: Any) -> Any:
        asked.append(options)
        return module

    monkeypatch.setattr(torch, "compile", compile_)
    found = cuda_ways.torch_ways(build_model(made.spec, made.state), first, "fp32", "cpu")
    assert [o["mode"] for o in asked] == [None] * 3 + ["reduce-overhead"] * 3
    for way in found:
        way.open()
    yield {way.name: way for way in found}
    for way in found:
        way.close()


def prepared(
    way: Way, made: Export, request: Request, compact: dict, store: type[Store] = PinnedStore
) -> Prepared:
    kept = way.kept(compact)
    held = way.cache == "full, held"
    bytes_ = None if held else way.store_of(compact, request.real, lambda _, blobs: store(blobs))
    return Prepared(way, made.spec, request, way.decode.place(kept) if held else kept, bytes_)


@pytest.mark.parametrize("store", [Store, PinnedStore])
def test_every_way_gives_the_bundles_scores(
    ways: dict[str, Way], made: Export, first: Way, request_of: Request, compact: dict, store: Any
):
    kinds = ("compact cache", "full KV held", "full KV fetched")
    assert list(ways) == [f"{title} on cpu, {kind}" for title in TITLES for kind in kinds]
    wanted = prepared(first, made, request_of, compact).score()
    assert np.ptp(wanted) > 0
    for name, way in ways.items():
        one = prepared(way, made, request_of, compact, store)
        assert one.lands == (name.endswith("fetched") and store is PinnedStore), name
        for _ in range(way.settles):
            np.testing.assert_allclose(one.score(), wanted, rtol=0, atol=2e-6, err_msg=name)
        assert (way.settles > 1) == ("CUDA graphs" in name)


class Gpu(TorchRunner):
    """Says that it runs on a GPU, and keeps what it was asked to upload."""

    def __init__(self, runner: TorchRunner) -> None:
        super().__init__(runner.module, runner.io)
        self.uploads: list[dict[str, Any]] = []

    def _place(self, arrays: Any) -> dict[str, Any]:
        return {n: Placed(a.shape, a.dtype, torch.from_numpy(a)) for n, a in arrays.items()}

    def _upload(self, feeds: Feeds) -> None:
        self.uploads.append(dict(feeds))

    def _describe(self) -> RunnerMetadata:
        return dataclasses.replace(super()._describe(), device="a GPU")


@pytest.mark.parametrize("kind", ["compact cache", "full KV held", "full KV fetched"])
def test_transfer_sends_what_does_not_lie_on_the_device(
    kind: str, ways: dict[str, Way], made: Export, request_of: Request, compact: dict
):
    way = ways[f"PyTorch eager on cpu, {kind}"]
    assert isinstance(way.decode, TorchRunner)
    gpu = Gpu(way.decode)
    with gpu:
        way = dataclasses.replace(way, decode=gpu)
        one = prepared(way, made, request_of, compact)
        calls = dict(one.calls())
        assert "transfer" in calls
        assert gpu.uploads == [], "nothing is sent before it is timed"
        for _ in range(2):
            calls["transfer"]()
        first_sent, sent = gpu.uploads
        assert set(sent) == {t.name for t in gpu.io.inputs}
        placed = {name for name, feed in sent.items() if isinstance(feed, Placed)}
        caches = {name for name in sent if name.startswith("cache_")}
        assert placed == (set() if kind == "compact cache" else caches)
        again = {name for name in placed if sent[name].value is not first_sent[name].value}
        assert again == (caches if kind == "full KV fetched" else set()), "sent at every call"
        told = way_dict(one, 0.0)
    rest = sum(a.nbytes for name, a in sent.items() if name not in caches)
    d, kept = made.spec.attention.d, made.spec.cached_events(SIZES.history)
    real = sum(min(n, kept) for n in request_of.real)
    whole = {"full KV held": 0, "full KV fetched": real * 2 * d * 4}
    if kind == "compact cache":
        whole[kind] = sum(a.nbytes for a in compact.values())
    assert told["host_to_device_bytes"] == rest + whole[kind]
    each = CacheSpec.of(made.spec)
    assert {f"cache_{suffix}" for suffix, _, _ in each.tensors} == set(compact)


def test_a_way_on_the_cpu_has_no_transfer(
    ways: dict[str, Way], made: Export, request_of: Request, compact: dict
):
    for way in ways.values():
        assert "transfer" not in dict(prepared(way, made, request_of, compact).calls())


def full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_gpu_without_room_for_the_weights_still_runs_what_needs_none(
    made: Export, first: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "to", full)
    module = SimpleNamespace(get_available_providers=lambda: [ort.CUDA])
    monkeypatch.setattr(cuda_ways, "load_module", lambda: module)
    weights = Weights(build_model(made.spec, made.state), build_reference(made.spec, made.state))
    ways, left_out = cuda_ways.cuda_ways(weights, first, tmp_path, "fp32")
    assert [w.name for w in ways] == [
        f"ONNX Runtime CUDA, full KV {kept}" for kept in ("held", "fetched")
    ]
    reason = "PyTorch can't hold the model's weights on cuda: CUDA out of memory"
    assert left_out == [LeftOut("PyTorch on cuda", reason)]


def test_stored_bytes_that_a_gpu_has_no_room_for(
    ways: dict[str, Way],
    made: Export,
    request_of: Request,
    compact: dict,
    monkeypatch: pytest.MonkeyPatch,
):
    way = ways["PyTorch eager on cpu, full KV fetched"]
    one = prepared(way, made, request_of, compact)
    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(ExportError, match="can't copy stored bytes to cpu: CUDA out of memory"):
        one.score()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(made: Export, first: Way, tmp_path: Path):
    weights: Any = SimpleNamespace(model=None)
    ways, left_out = cuda_ways.cuda_ways(weights, first, tmp_path, "fp32")
    assert ways == []
    assert [w.name for w in left_out] == [ON_CUDA]
    assert "has no GPU here" in left_out[0].reason


def test_onnxruntime_without_cuda_is_told(
    made: Export, first: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_ways, "torch_ways", lambda *_: [])
    model = build_model(made.spec, made.state)
    weights = Weights(model, build_reference(made.spec, made.state))
    both = [f"ONNX Runtime CUDA, full KV {kept}" for kept in ("held", "fetched")]
    for provider, found, missing in ((ort.CUDA, both, []), (ort.CPU, [], both)):
        module = SimpleNamespace(get_available_providers=lambda offered=provider: [offered])
        monkeypatch.setattr(cuda_ways, "load_module", lambda module=module: module)
        ways, left_out = cuda_ways.cuda_ways(weights, first, tmp_path, "fp32")
        assert [w.name for w in ways] == found
        assert [w.name for w in left_out] == missing
        assert all(w.decode.provider == ort.CUDA for w in ways)
        assert [w.lands for w in ways] == [None, "cuda"][: len(found)]

"""What a bundle's own files allow: ONNX Runtime on the CPU and GPU, and engines."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from ckv_export.bench.bundles import BenchedBundle
from ckv_export.bench.engine_sets import BACKENDS, EngineSet, engine_sets
from ckv_export.bench.stored import Layout
from ckv_export.bench.ways import Cache, LeftOut, Origin, Way
from ckv_export.cache.pool_file import load_pools
from ckv_export.contract import CacheSpec
from ckv_export.errors import CkvError
from ckv_export.runtimes.base import Array, Runner
from ckv_export.runtimes.bound import BoundRunner
from ckv_export.runtimes.onnxruntime import CPU, CUDA, OnnxRuntimeRunner, load_module
from ckv_export.runtimes.tensorrt import TensorRtRunner

FIRST = "ONNX Runtime, compact cache"
"""What all other ways are compared with."""
NO_CACHE = "ONNX Runtime, no cache"
ON_CUDA = "ONNX Runtime CUDA, compact cache"

Found = tuple[list[Way], list[LeftOut]]


def bundle_ways(bundle: BenchedBundle, threads: int, floats: str) -> Found:
    """The ways of one bundle, and what it has none for."""
    manifest = bundle.manifest
    layout = Layout(manifest.model, CacheSpec.of(manifest.model), floats)
    pools = load_pools(bundle.folder, manifest)
    origin = Origin(manifest.name, manifest.precision)

    def onnx(graph: str, provider: str) -> Runner:
        path, io = bundle.folder / f"{graph}.onnx", manifest.graph(graph)
        return BoundRunner(OnnxRuntimeRunner(path, io, provider, threads), pools)

    def way(name: str, cache: Cache, provider: str) -> Way:
        runners = onnx("prefill", provider), onnx("decode", provider)
        return Way(bundle.title(name), cache, *runners, layout, origin=origin)

    ways = [way(FIRST, "compact", CPU)]
    prefill, decode = ways[0].prefill, ways[0].decode
    ways.append(Way(bundle.title(NO_CACHE), "none", prefill, decode, layout, origin=origin))
    left_out = []
    if CUDA in load_module().get_available_providers():
        ways.append(way(ON_CUDA, "compact", CUDA))
        reason = (
            "ONNX Runtime captures only calls whose inputs and outputs all stay at one address on "
            "the GPU, of one shape a session: ckv-export doesn't bind them so"
        )
        left_out.append(LeftOut(bundle.title("ONNX Runtime CUDA, CUDA graphs"), reason))
    else:
        reason = "this ONNX Runtime has no CUDA provider: install onnxruntime-gpu"
        left_out.append(LeftOut(bundle.title(ON_CUDA), reason))
    if manifest.item_table is not None:
        reason = (
            "decode_items is not measured: no cache of a user goes into it, the rest is decode's"
        )
        left_out.append(LeftOut(bundle.title("ONNX Runtime, item table"), reason))
    engines, without = _engine_ways(bundle, layout, pools)
    return ways + engines, left_out + without


def _engine_ways(bundle: BenchedBundle, layout: Layout, pools: Mapping[str, Array]) -> Found:
    sets = list(engine_sets(bundle.manifest))
    ways, left_out = [], []
    for engines, graphs in itertools.product(sets, (False, True)):
        captured = ", CUDA graphs" if graphs else ""
        title = bundle.title(f"{engines.name}{captured}, compact cache")
        try:
            ways.append(_engine_way(title, bundle, engines, layout, pools, graphs))
        except CkvError as error:
            left_out.append(LeftOut(title, str(error)))
    for name in BACKENDS:
        if name not in [engines.backend for engines in sets]:
            title = bundle.title(f"{name} engines, compact cache")
            reason = f"the bundle has no {name} engines: ckv-export build makes them"
            left_out.append(LeftOut(title, reason))
    return ways, left_out


def _engine_way(
    title: str,
    bundle: BenchedBundle,
    engines: EngineSet,
    layout: Layout,
    pools: Mapping[str, Array],
    graphs: bool,
) -> Way:
    manifest, runner = bundle.manifest, TensorRtRunner.of_bundle
    prefill, decode = (
        BoundRunner(runner(bundle.folder, manifest, entry, cuda_graphs=graphs), pools)
        for entry in (engines.prefill, engines.decode)
    )
    origin = Origin(manifest.name, manifest.precision, engines.decode.pool_step or None)
    # A plain call, one that captures and replays, one that replays.
    settles = 3 if graphs else 1
    return Way(title, "compact", prefill, decode, layout, origin=origin, settles=settles)

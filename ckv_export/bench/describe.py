"""Parts of a result that were not timed: what was measured, and what each way weighs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ckv_export.bench.bundles import BenchedBundle
from ckv_export.bench.request import BenchRequest
from ckv_export.bench.ways import Prepared
from ckv_export.manifest import Manifest, read_manifest
from ckv_export.runtimes.base import Placed


def expected(request: BenchRequest, environment: Mapping[str, Any]) -> dict[str, Any]:
    """What a result of `request` will say of environment, bundle and settings."""
    manifest = read_manifest(request.bundle)
    return {
        "environment": environment,
        "bundle": bundle_dict(manifest),
        "settings": settings_dict(request),
    }


def way_dict(one: Prepared, error: float) -> dict[str, Any]:
    """A way without its timings; `error`: the worst of its scores."""
    way, decode = one.way, one.way.decode
    told = decode.metadata()
    on_device = told.device != "cpu"
    return {
        "name": way.name,
        "runtime": told.runtime,
        "version": told.version,
        "device": told.device,
        "cache": way.cache,
        "bundle": way.origin.bundle or None,
        "precision": way.origin.precision,
        "pool_step": way.origin.pool_step,
        "fetched_bytes": fetched_bytes(one),
        "host_to_device_bytes": _sent_bytes(one) if on_device else 0,
        "load_seconds": round(way.load_seconds, 4),
        "first_call_seconds": round(way.first_call_seconds, 4),
        "host_bytes": way.host_bytes,
        "gpu_bytes": _gpu_bytes() if on_device else None,
        "worst_score_error": error,
    }


def bundle_dict(manifest: Manifest) -> dict[str, Any]:
    """Which model."""
    return {
        "name": manifest.name,
        "fingerprint": manifest.fingerprint,
        "precision": manifest.precision,
        "model": manifest.model.to_dict(),
    }


def beside_dict(bundle: BenchedBundle) -> dict[str, Any]:
    """Another bundle of the same model."""
    return {
        "label": bundle.label,
        "name": bundle.manifest.name,
        "precision": bundle.manifest.precision,
    }


def settings_dict(request: BenchRequest) -> dict[str, Any]:
    """How it was measured."""
    settings = request.settings
    return {
        "sizes": vars(request.sizes),
        "threads": request.threads,
        "stored": request.floats,
        "source": request.source,
        "seed": request.seed,
        "warmup": settings.warmup,
        "window": settings.window,
        "tolerance": settings.tolerance,
        "seconds": settings.seconds,
    }


def fetched_bytes(one: Prepared) -> int:
    """Bytes that one call fetches of its users' caches; 0 where nothing is fetched."""
    if one.store is None:
        return 0
    return sum(map(len, one.store.fetch(range(one.request.sizes.batch))))


def _sent_bytes(one: Prepared) -> int:
    """Bytes of decode's inputs that a call sends to the device: what doesn't lie there."""
    feeds = one.request.decode_feeds(one.way.decode.io, one.cache)
    arrays = {name: feed for name, feed in feeds.items() if not isinstance(feed, Placed)}
    if one.lands:  # in the dtype that they are stored in
        rest = sum(a.nbytes for name, a in arrays.items() if name not in one.cache)
        return rest + fetched_bytes(one)
    return sum(a.nbytes for a in arrays.values())


def cycling(prepared: Sequence[Prepared]) -> Callable[[], object]:
    """A call that serves the next of these requests, and after the last the first again."""

    def endless() -> Iterator[Prepared]:
        while True:
            yield from prepared

    turn = endless()
    return lambda: next(turn).score()


def _gpu_bytes() -> int | None:
    """GPU memory in use by all processes; None without a GPU that torch can ask."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return int(total - free)

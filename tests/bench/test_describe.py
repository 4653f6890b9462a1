"""What a result says of settings and ways, beside times."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ckv_testing.records import MANIFESTS

from ckv_export.bench.bundles import BenchedBundle
from ckv_export.bench.describe import beside_dict, bundle_dict, cycling, settings_dict, way_dict
from ckv_export.bench.measure import Settings
from ckv_export.bench.request import BenchRequest
from ckv_export.bench.stored import Store
from ckv_export.bench.ways import Origin
from ckv_export.bench.workload import Sizes
from ckv_export.runtimes.base import Placed, RunnerMetadata


def test_settings_are_those_of_the_request():
    settings = Settings(warmup=6, window=7, tolerance=0.25, seconds=8.5)
    request = BenchRequest(
        Path("b"), Sizes(1, 2, 3, 4), threads=5, settings=settings, source="file", floats="fp16"
    )
    assert settings_dict(request) == {
        "sizes": {"batch": 1, "history": 2, "appended": 3, "candidates": 4},
        "threads": 5,
        "stored": "fp16",
        "source": "file",
        "seed": 0,
        "warmup": 6,
        "window": 7,
        "tolerance": 0.25,
        "seconds": 8.5,
    }
    assert settings_dict(BenchRequest(Path("b"), Sizes(), seed=9))["seed"] == 9


def test_a_bundle_is_named_with_its_model_and_precision():
    manifest = dataclasses.replace(MANIFESTS["HSTU"], precision="bf16")
    model = manifest.model.to_dict()
    told = {"name": "toy", "fingerprint": manifest.fingerprint, "precision": "bf16"}
    assert bundle_dict(manifest) == told | {"model": model}


def test_a_bundle_beside_is_told_with_what_its_ways_are_named_after():
    manifest = dataclasses.replace(MANIFESTS["HSTU"], precision="fp16")
    told = beside_dict(BenchedBundle(Path("b"), manifest, "other/toy"))
    assert told == {"label": "other/toy", "name": "toy", "precision": "fp16"}


def served(device: str, lands: bool = False, *origin: str) -> Any:
    """Two users' request: 40 bytes of cache, 12 of candidates, and 10 stored bytes a user.

    Features of the users lie on the device.
    """
    cache = {"cache_k_user": np.zeros(10, np.float32)}
    feeds: dict[str, Any] = cache | {"candidate_item_id": np.zeros(3, np.int32)}
    feeds["user_age"] = Placed((2,), np.dtype(np.int32), None)
    decode = SimpleNamespace(io=None, metadata=lambda: RunnerMetadata("r", "9", device, "decode"))
    way = SimpleNamespace(
        name="w", cache="full, fetched", decode=decode, origin=Origin(*origin), host_bytes=7
    )
    way.load_seconds, way.first_call_seconds = 1.00004, 2.5
    request = SimpleNamespace(sizes=Sizes(batch=2), decode_feeds=lambda io, cache: feeds)
    store = Store([b"0123456789"] * 2)
    return SimpleNamespace(way=way, request=request, cache=cache, store=store, lands=lands)


@pytest.mark.parametrize(
    ("device", "lands", "sent"), [("cpu", False, 0), ("X", False, 52), ("X", True, 12 + 20)]
)
def test_what_a_way_weighs(device: str, lands: bool, sent: int, monkeypatch: pytest.MonkeyPatch):
    """On the CPU nothing is sent; what lands by itself is sent as it is stored."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (100, 130))
    assert way_dict(served(device, lands), 1e-7) == {
        **{"name": "w", "runtime": "r", "version": "9", "device": device},
        **{"cache": "full, fetched", "bundle": None, "precision": "fp32", "pool_step": None},
        **{"fetched_bytes": 20, "host_to_device_bytes": sent},
        **{"load_seconds": 1.0, "first_call_seconds": 2.5},
        **{"host_bytes": 7, "gpu_bytes": None if device == "cpu" else 30},
        "worst_score_error": 1e-7,
    }


def test_a_way_says_whose_files_it_runs():
    told = way_dict(served("cpu", False, "half", "fp16", "plugin"), 0.0)
    assert (told["bundle"], told["precision"], told["pool_step"]) == ("half", "fp16", "plugin")


def test_a_way_that_fetches_nothing_fetches_no_bytes():
    held = served("cpu")
    held.store = None
    assert way_dict(held, 0.0)["fetched_bytes"] == 0


def test_requests_are_served_one_after_another_for_ever():
    ones: list[Any] = [SimpleNamespace(score=lambda n=n: n) for n in range(3)]
    call = cycling(ones)
    assert [call() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]

"""Results of ``ckv-export bench``: made up, or measured in no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import ckv_export.bench
from ckv_testing.draw import make_spec

SCHEMA = json.loads((Path(ckv_export.bench.__file__).parent / "result.schema.json").read_text())
QUICK = ("--seconds", "0.01", "--candidates", "5", "--history", "12", "--stored", "fp32")
"""Options of a run that measures next to nothing."""


def timing(rng: np.random.Generator, typical: float, windows: int = 10) -> dict[str, Any]:
    """Around `typical` milliseconds, within 1%."""
    drawn = (typical * rng.uniform(0.99, 1.01, (windows, 8))).tolist()
    times = {f"p{p}_ms": float(np.percentile(drawn, p)) for p in (50, 90, 99)}
    extra = {"mean_ms": typical, "per_second": 1000 / typical, "calls": 8 * windows}
    return {**times, **extra, "stable": True, "windows_ms": drawn}


def way(name: str, **timings: dict[str, Any]) -> dict[str, Any]:
    """A way with these phases."""
    return {
        "name": name,
        "runtime": "onnxruntime",
        "version": "1",
        "device": "cpu",
        "cache": "compact",
        "fetched_bytes": 12_000,
        "host_to_device_bytes": 0,
        "load_seconds": 0.1,
        "first_call_seconds": 0.1,
        "host_bytes": None,
        "gpu_bytes": None,
        "worst_score_error": 0.0,
        "phases": timings,
        "rate": None,
    }


def result(*ways: dict[str, Any]) -> dict[str, Any]:
    """A whole result."""
    sizes = {"batch": 1, "history": 1000, "appended": 1, "candidates": 100}
    machine = {"system": "s", "cpu": "c", "cores": 2, "python": "3", "load": 0.0}
    return {
        "schema_version": 1,
        "environment": {
            "command": "ckv-export bench x",
            "date": "2026-01-01",
            "commit": "0" * 40,
            "machine": machine,
            "gpus": [],
            "versions": {"torch": "2"},
        },
        "bundle": {
            "name": "x<y>",
            "fingerprint": "0" * 64,
            "precision": "fp32",
            "model": make_spec("sim").to_dict(),
        },
        "settings": {
            "sizes": sizes,
            "threads": 1,
            "stored": "fp32",
            "source": "memory",
            "seed": 0,
            "warmup": 3,
            "window": 8,
            "tolerance": 0.03,
            "seconds": 20.0,
        },
        "ways": list(ways),
        "left_out": [],
        "sweep": [],
        "traffic": None,
    }

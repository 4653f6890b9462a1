"""Loading a plugin library into a real plugin registry, TensorRT for RTX's."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NAMES = ["PoolGatherConcat", "PooledAttention", "PooledPointwiseAttention"]
SECONDS = 60


def registered(how: str, library: Path) -> dict[str, Any]:
    """What a registry in a process of its own makes of `library`."""
    script = Path(__file__).with_name("registry_process.py")
    result = subprocess.run(
        [sys.executable, str(script), how, str(library)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stderr
    # Bad attributes are reported, not thrown.
    assert "num_heads is missing" in result.stdout + result.stderr
    facts: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return facts


def check_creators(facts: dict[str, Any]) -> None:
    assert sorted(c["key"][0] for c in facts["creators"]) == sorted(NAMES)
    for creator in facts["creators"]:
        name = creator["key"][0]
        assert creator["key"] == creator["plugin"] == [name, "1", "ckv"]
        gather = name == "PoolGatherConcat"
        assert creator["fields"] == ([] if gather else ["num_heads", "scale"])
    assert facts["without fields"] is None
    assert facts["elsewhere"], "the creators must be in namespace ckv alone"


def require_library(folder: Path, pattern: str) -> Path:
    """A built library; skips where it can't be built or there is no registry to load it."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    found = list(folder.glob(pattern))
    if not found:
        pytest.skip("TensorRT's headers are not here: set TensorRT_ROOT")
    return found[0]

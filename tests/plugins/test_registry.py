"""Both flavours of the plugin library in a real plugin registry, TensorRT for RTX's."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from ckv_registry import check_creators, registered, require_library

pytestmark = pytest.mark.tensorrt


def test_dynamic_library_is_loaded_once(cpu_build: Path) -> None:
    facts = registered(
        "loadLibrary", require_library(cpu_build, "tests/libckv_plugins_emulated_trt*.so")
    )
    check_creators(facts)
    assert facts["loaded"] == [True, False], "a second load must be refused, not registered twice"


def test_static_library_registers_itself(cpu_build: Path) -> None:
    pattern = "tests/libckv_plugins_registering_emulated_trt*.so"
    facts = registered("dlopen", require_library(cpu_build, pattern))
    check_creators(facts)


# A process of its own: what a registry has loaded stays loaded.
PREPARE = """
import json, sys
import tensorrt_rtx
from ckv_export.engine import Backend, PluginChoice, plugins
from pathlib import Path

backend = Backend("tensorrt", tensorrt_rtx, sys.argv[2])
choice = PluginChoice("library", Path(sys.argv[1]))
before = plugins.registered(backend)
records = [plugins.prepare(choice, backend, ("sm90",), carried=False) for _ in range(2)]
try:
    plugins.prepare(PluginChoice(), backend, ("sm90",), carried=False)
    refusal = "none"
except Exception as error:
    refusal = str(error)
found = plugins.registered(backend)
print(json.dumps([before, found, [r.to_dict() for r in records], refusal]))
"""


def test_a_build_loads_the_library_into_a_real_registry(cpu_build: Path, tmp_path: Path) -> None:
    """The registry of TensorRT for RTX stands for that of the full TensorRT."""
    built = require_library(cpu_build, "tests/libckv_plugins_emulated_trt*.so")
    major = built.stem.rpartition("trt")[2]
    library = tmp_path / f"libckv_plugins_trt{major}.so"
    library.write_bytes(built.read_bytes())
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    record = {
        "schema_version": 1,
        "operator_version": "1",
        "tensorrt": f"{major}.1.0",
        "targets": ["sm80", "sm90"],
        "files": {library.name: digest},
    }
    (tmp_path / "plugins.json").write_text(json.dumps(record))
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(tmp_path), f"{major}.4.0"],
        capture_output=True,
        text=True,
        check=True,
    )
    before, found, records, refusal = json.loads(done.stdout.splitlines()[-1])
    assert before == []
    assert found == ["PoolGatherConcat", "PooledAttention", "PooledPointwiseAttention"]
    assert [r["sha256"] for r in records] == [digest] * 2
    assert "--plugin none can't be built in this process" in refusal

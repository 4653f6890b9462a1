"""Both flavours of the plugin library in a real plugin registry, TensorRT for RTX's."""

from __future__ import annotations

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

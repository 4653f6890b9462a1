"""One GPU target by nvcc with warnings as errors: what the build holds, and that it loads.

Late in this folder by name, as test_virtual_gpu is: the builds run beside the other tests.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from ckv_registry import check_creators, registered, require_library


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_nvcc_compiles_everything_without_a_warning(nvcc_build: Path) -> None:
    log = (nvcc_build / "log").read_text()
    assert (nvcc_build / "ckv_harness").exists()
    assert "warning" not in log.lower()


def test_the_harness_says_when_there_is_no_gpu(nvcc_build: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("there may be a GPU here")
    result = subprocess.run([nvcc_build / "ckv_harness"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "needs an NVIDIA GPU" in result.stderr


def test_the_dynamic_library_exports_two_symbols_and_needs_no_tensorrt(nvcc_build: Path) -> None:
    if not shutil.which("readelf") or not shutil.which("nm"):
        pytest.skip("binutils are not installed")
    library = require_library(nvcc_build, "libckv_plugins_trt*.so")
    symbols = output_of("nm", "-D", "--defined-only", library).split("\n")
    assert {line.split()[-1] for line in symbols if line} == {"getCreators", "setLoggerFinder"}
    needed = output_of("readelf", "-d", library)
    assert "nvinfer" not in needed
    # The CUDA runtime is inside: the library runs wherever the driver is new enough.
    assert "libcudart" not in needed


@pytest.mark.tensorrt
def test_library_with_gpu_code_loads_without_a_gpu(nvcc_build: Path) -> None:
    facts = registered("loadLibrary", require_library(nvcc_build, "libckv_plugins_trt*.so"))
    check_creators(facts)


@pytest.mark.tensorrt
def test_registering_library_with_gpu_code_registers_itself(nvcc_build: Path) -> None:
    library = require_library(nvcc_build, "libckv_plugins_registering_trt*.so")
    check_creators(registered("dlopen", library))

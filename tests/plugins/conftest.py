"""Builds of plugins/ for the whole session.

The build by nvcc takes longest, so it starts with the first test of this folder and runs beside
the others until a test asks for it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ckv_testing.cmake import ROOT, Sources, cuda_headers, registry_option, require

# Modules of this folder that its tests share.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from ckv_native import Cpu

PLUGINS = Sources(ROOT / "plugins")

# One target, not optimised: that takes a third of the time, and no GPU will run it.
NVCC_OPTIONS = (
    "-DCKV_CUDA_TARGETS=80-real",
    "-DCKV_TESTS=OFF",
    "-DCMAKE_CUDA_FLAGS=-Xcicc=-O0 -Xptxas=-O0",
)


@pytest.fixture(scope="session", autouse=True)
def nvcc_started() -> Iterator[subprocess.Popen[str] | None]:
    """The build for one GPU target, under way."""
    if not all(map(shutil.which, ("cmake", "nvcc", "nice"))):
        yield None
        return
    build = PLUGINS.start("nvcc", *NVCC_OPTIONS, *registry_option())
    yield build
    if build.poll() is None:
        build.terminate()


@pytest.fixture(scope="session")
def nvcc_build(nvcc_started: subprocess.Popen[str] | None) -> Path:
    """Folder of the build for sm_80."""
    if nvcc_started is None:
        pytest.skip("nvcc or cmake is not installed")
    return PLUGINS.finish(nvcc_started, "nvcc")


@pytest.fixture(scope="session")
def cpu_build() -> Path:
    """Folder of the build that needs no nvcc: reference, emulated kernels, plugins, tests."""
    require("cmake", "c++")
    if (headers := cuda_headers()) is None:
        pytest.skip("CUDA's headers are not here: set CUDA_HOME")
    options = [
        "-DCKV_CUDA=OFF",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
        f"-DCKV_CUDA_INCLUDE={headers}",
        *registry_option(),
    ]
    return PLUGINS.finish(PLUGINS.start("cpu", *options), "cpu")


@pytest.fixture(scope="session")
def cpu(cpu_build: Path) -> Cpu:
    """Reference and emulated kernels."""
    return Cpu(cpu_build / "tests" / "libckv_cpu.so")

"""Builds of plugins/ for the whole session.

The builds by nvcc take longest, so they start with the first test of this folder and run beside
the others until a test asks for one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
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


# The kernels as they are shipped, but as PTX alone: that goes without nvcc's assembler.
PTX_TARGETS = ("ptx_programs",)

Builds = Mapping[str, "subprocess.Popen[str]"]


@pytest.fixture(scope="session", autouse=True)
def nvcc_started() -> Iterator[Builds]:
    """The builds by nvcc, under way; empty where there is none."""
    if not all(map(shutil.which, ("cmake", "nvcc", "nice"))):
        yield {}
        return
    builds = {
        "nvcc": PLUGINS.start("nvcc", *NVCC_OPTIONS, *registry_option(), jobs=1),
        "ptx": PLUGINS.start("ptx", jobs=1, targets=PTX_TARGETS),
    }
    yield builds
    for build in builds.values():
        if build.poll() is None:
            build.terminate()


def finished(builds: Builds, name: str) -> Path:
    if not builds:
        pytest.skip("nvcc or cmake is not installed")
    return PLUGINS.finish(builds[name], name)


@pytest.fixture(scope="session")
def nvcc_build(nvcc_started: Builds) -> Path:
    """Folder of the build for sm_80."""
    return finished(nvcc_started, "nvcc")


@pytest.fixture(scope="session")
def ptx_build(nvcc_started: Builds) -> Path:
    """Folder of the kernels as PTX, with the GPU that runs it on the CPU."""
    return finished(nvcc_started, "ptx")


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

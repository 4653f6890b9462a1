"""Builds of plugins/ for the whole session."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from ckv_testing.cmake import ROOT, Build, Builds, Sources, cuda_headers, registry_option

# Modules of this folder that its tests share.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from ckv_native import Cpu

PLUGINS = Sources(ROOT / "plugins")


def missing(*programs: str) -> str | None:
    """Which of these and of what every build needs is not installed."""
    wanted = ("cmake", "nice", "flock", *programs)
    lacking = next((p for p in wanted if shutil.which(p) is None), None)
    return None if lacking is None else f"{lacking} is not installed"


def missing_without_nvcc() -> str | None:
    headers = "CUDA's headers are not here: set CUDA_HOME"
    return missing("c++") or (headers if cuda_headers() is None else None)


# One target, not optimised: that takes a third of the time, and no GPU will run it. The kernels
# as they are shipped come as PTX alone: that goes without nvcc's assembler.
BY_NVCC = Builds(
    PLUGINS,
    {
        "ptx_build": Build(targets=["ptx_programs"]),
        "nvcc_build": Build(
            [
                "-DCKV_CUDA_TARGETS=80-real",
                "-DCKV_TESTS=OFF",
                "-DCMAKE_CUDA_FLAGS=-Xcicc=-O0 -Xptxas=-O0",
                *registry_option(),
            ]
        ),
    },
    lambda: missing("nvcc"),
)
WITHOUT_NVCC = Builds(
    PLUGINS,
    {
        "cpu_build": Build(
            [
                "-DCKV_CUDA=OFF",
                "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
                f"-DCKV_CUDA_INCLUDE={cuda_headers()}",
                *registry_option(),
            ]
        )
    },
    missing_without_nvcc,
)


def pytest_collection_finish(session: pytest.Session) -> None:
    WITHOUT_NVCC.begin(session)
    BY_NVCC.begin(session)


def pytest_sessionfinish() -> None:
    WITHOUT_NVCC.end()
    BY_NVCC.end()


@pytest.fixture(scope="session")
def nvcc_build() -> Path:
    """Folder of the build for sm_80."""
    return BY_NVCC.folder("nvcc_build")


@pytest.fixture(scope="session")
def ptx_build() -> Path:
    """Folder of the kernels as PTX, with the GPU that runs it on the CPU."""
    return BY_NVCC.folder("ptx_build")


@pytest.fixture(scope="session")
def cpu_build() -> Path:
    """Folder of the build that needs no nvcc: reference, emulated kernels, plugins, tests."""
    return WITHOUT_NVCC.folder("cpu_build")


@pytest.fixture(scope="session")
def cpu(cpu_build: Path) -> Cpu:
    """Reference and emulated kernels."""
    return Cpu(cpu_build / "tests" / "libckv_cpu.so")

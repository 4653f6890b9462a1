"""Builds of plugins/ for the whole session.

Builds go to plugins/build (git-ignored), in folders named after a hash of the sources: a second
run finds them. The build by nvcc takes longest, so it starts with the first test of this folder
and runs beside the others until a test asks for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Modules of this folder that its tests share.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from ckv_native import Cpu

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
SOURCES = {".h", ".cuh", ".cu", ".cpp", ".txt", ".cmake", ".map"}

# One target, not optimised: that takes a third of the time, and no GPU will run it.
NVCC_OPTIONS = (
    "-DCKV_CUDA_TARGETS=80-real",
    "-DCKV_TESTS=OFF",
    "-DCMAKE_CUDA_FLAGS=-Xcicc=-O0 -Xptxas=-O0",
)


def source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(PLUGINS.rglob("*")):
        inside = path.relative_to(PLUGINS)
        if path.suffix in SOURCES and inside.parts[0] != "build":
            digest.update(str(inside).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def start_build(name: str, *options: str) -> subprocess.Popen[str]:
    """Configure and build into a folder of its own; nothing to do where that is there already.

    The lock keeps two sessions from building into one folder; it is the shell's, so it goes when
    the build ends, however it ends.
    """
    folder = build_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f"pytest-{name}-*"):
        if stale != folder:
            shutil.rmtree(stale, ignore_errors=True)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    configure = ["cmake", "-S", str(PLUGINS), "-B", str(folder), *generator, *options]
    done = (folder / "done").exists()
    script = 'exec 2>&1; "$@" && nice cmake --build "$0" --parallel 2 && touch "$0/done"'
    return subprocess.Popen(
        ["sh", "-c", "true" if done else script, str(folder), *configure],
        stdout=(folder / "log").open("a" if done else "w"),
        text=True,
        pass_fds=[lock.fileno()],
    )


def build_folder(name: str) -> Path:
    return PLUGINS / "build" / f"pytest-{name}-{source_hash()}"


def finish(build: subprocess.Popen[str], name: str) -> Path:
    folder = build_folder(name)
    if build.wait() != 0:
        log = (folder / "log").read_text()
        pytest.fail(f"the build {name} failed:\n{log[-6000:]}", pytrace=False)
    return folder


def require(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@pytest.fixture(scope="session", autouse=True)
def nvcc_started() -> Iterator[subprocess.Popen[str] | None]:
    """The build for one GPU target, under way."""
    if not all(map(shutil.which, ("cmake", "nvcc", "nice"))):
        yield None
        return
    build = start_build("nvcc", *NVCC_OPTIONS, *registry_option())
    yield build
    if build.poll() is None:
        build.terminate()


@pytest.fixture(scope="session")
def nvcc_build(nvcc_started: subprocess.Popen[str] | None) -> Path:
    """Folder of the build for sm_80."""
    if nvcc_started is None:
        pytest.skip("nvcc or cmake is not installed")
    return finish(nvcc_started, "nvcc")


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
    return finish(start_build("cpu", *options), "cpu")


def cuda_headers() -> Path | None:
    """Folder of cuda_runtime_api.h; no part of CUDA but its headers is needed on a CPU."""
    homes = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]
    if (nvcc := shutil.which("nvcc")) is not None:
        homes.append(Path(nvcc).resolve().parents[1])
    folders = [home / "include" for home in homes]
    return next((f for f in folders if (f / "cuda_runtime_api.h").exists()), None)


def registry_option() -> list[str]:
    """A library with TensorRT's registry, to stand in for libnvinfer, where there is one."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [path for f in folders for path in Path(f).glob("libtensorrt_rtx.so*")]
    return [f"-DTensorRT_LIBRARY={path}" for path in found[:1]]


@pytest.fixture(scope="session")
def cpu(cpu_build: Path) -> Cpu:
    """Reference and emulated kernels."""
    return Cpu(cpu_build / "tests" / "libckv_cpu.so")

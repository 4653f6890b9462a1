"""Builds of engines/cpp/ for the whole session; both start with the first test of this folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ckv_testing.cmake import ROOT, Sources, registry_option

# A module of this folder that its tests share.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from ckv_cpp import Library

CPP = Sources(ROOT / "engines" / "cpp")
# With sanitizers, optimising one of the files takes longer than compiling all the others.
BUILDS = {
    "release": ["-DCMAKE_CXX_FLAGS_RELEASE=-O1", *registry_option()],
    "sanitize": ["-DCMAKE_CXX_FLAGS_RELEASE=-O0", "-DCKV_SANITIZE=ON", "-DCKV_ENGINE=OFF"],
}
Builds = dict[str, subprocess.Popen[str]]


def missing() -> str | None:
    """What keeps the library from being built here."""
    for program in ("cmake", "c++", "nice"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    looked_in = ("/usr/include", "/usr/local/include")
    if not any((Path(folder) / "nlohmann" / "json.hpp").exists() for folder in looked_in):
        return "nlohmann's json.hpp is not here: apt-get install nlohmann-json3-dev"
    return None


@pytest.fixture(scope="session", autouse=True)
def started() -> Iterator[Builds]:
    """The builds, under way; none where something is missing."""
    builds = {}
    if missing() is None:
        builds = {name: CPP.start(name, *options, jobs=1) for name, options in BUILDS.items()}
    yield builds
    for build in builds.values():
        if build.poll() is None:
            build.terminate()


def finished(started: Builds, name: str) -> Path:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    return CPP.finish(started[name], name)


@pytest.fixture(scope="session")
def cpp_build(started: Builds) -> Path:
    """Folder of the library, its tests and its example."""
    return finished(started, "release")


@pytest.fixture(scope="session")
def sanitized_build(started: Builds) -> Path:
    """The same without the engine, under sanitizers."""
    return finished(started, "sanitize")


@pytest.fixture(scope="session")
def engine_build(cpp_build: Path) -> Path:
    """`cpp_build`, where it has the engine."""
    if not (cpp_build / "libckv_engine.a").exists():
        pytest.skip("CUDA's toolkit or TensorRT's headers are not here")
    return cpp_build


@pytest.fixture(scope="session")
def library(cpp_build: Path) -> Library:
    """The library in this process."""
    return Library(cpp_build / "tests" / "libckv_c.so")

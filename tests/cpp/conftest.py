"""Builds of engines/cpp/ for the whole session."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from ckv_testing.cmake import ROOT, Build, Builds, Sources, registry_option

# A module of this folder that its tests share.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from ckv_cpp import Library


def missing() -> str | None:
    """What keeps the library from being built here."""
    for program in ("cmake", "c++", "nice", "flock"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    looked_in = ("/usr/include", "/usr/local/include")
    if not any((Path(folder) / "nlohmann" / "json.hpp").exists() for folder in looked_in):
        return "nlohmann's json.hpp is not here: apt-get install nlohmann-json3-dev"
    return None


CPP = Builds(
    Sources(ROOT / "engines" / "cpp"),
    {
        "cpp_build": Build(["-DCMAKE_CXX_FLAGS_RELEASE=-O1", *registry_option()]),
        # With sanitizers, optimising one of the files takes longer than compiling all the others.
        "sanitized_build": Build(
            ["-DCMAKE_CXX_FLAGS_RELEASE=-O0", "-DCKV_SANITIZE=ON", "-DCKV_ENGINE=OFF"]
        ),
    },
    missing,
)


def pytest_collection_finish(session: pytest.Session) -> None:
    CPP.begin(session)


def pytest_sessionfinish() -> None:
    CPP.end()


@pytest.fixture(scope="session")
def cpp_build() -> Path:
    """Folder of the library, its tests and its example."""
    return CPP.folder("cpp_build")


@pytest.fixture(scope="session")
def sanitized_build() -> Path:
    """The same without the engine, under sanitizers."""
    return CPP.folder("sanitized_build")


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

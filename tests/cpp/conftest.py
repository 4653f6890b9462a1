"""Builds of engines/cpp/ for the whole session."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from ckv_testing.cmake import (
    ROOT,
    Build,
    Builds,
    Sources,
    onnxruntime_option,
    registry_option,
)
from ckv_testing.serving import Shop, export_plain, plain_shop
from ckv_testing.workers import common_folder, made_once

# A module of this folder that its tests share.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from ckv_cpp import Library, SessionLibrary


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
        "cpp_build": Build(
            ["-DCMAKE_CXX_FLAGS_RELEASE=-O1", *registry_option(), *onnxruntime_option()]
        ),
        # With sanitizers, optimising one of the files takes longer than compiling all the others.
        "sanitized_build": Build(
            [
                *("-DCMAKE_CXX_FLAGS_RELEASE=-O0", "-DCKV_SANITIZE=ON"),
                *("-DCKV_ENGINE=OFF", "-DCKV_SESSION=OFF"),
            ]
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
    """The same without session and engine, under sanitizers."""
    return CPP.folder("sanitized_build")


def require(built: Path, reason: str) -> None:
    """Skip where CMake has left that out."""
    if not built.exists():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def engine_build(cpp_build: Path) -> Path:
    """`cpp_build`, where it has the engine."""
    require(cpp_build / "libckv_engine.a", "CUDA's toolkit or TensorRT's headers are not here")
    return cpp_build


@pytest.fixture(scope="session")
def library(cpp_build: Path) -> Library:
    """The library in this process."""
    return Library(cpp_build / "tests" / "libckv_c.so")


@pytest.fixture(scope="session")
def session_build(cpp_build: Path) -> Path:
    """`cpp_build`, where it has the session and programs with it."""
    header = "ONNX Runtime's C header is not here: set onnxruntime_ROOT"
    require(cpp_build / "libckv_session.a", header)
    require(cpp_build / "ckv_serve", "no ONNX Runtime to link: pip install onnxruntime")
    return cpp_build


@pytest.fixture(scope="session")
def sessions(session_build: Path) -> SessionLibrary:
    """The library's sessions in this process."""
    return SessionLibrary(session_build / "tests" / "libckv_session_c.so")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A SIM whose items have an id alone."""
    base = common_folder(tmp_path_factory.getbasetemp())
    return plain_shop(made_once(base / "shop_plain", export_plain))

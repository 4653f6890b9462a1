"""Which backend is found, preferred and refused."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from ckv_export.engine import Backend, available, backends, load
from ckv_export.errors import EngineError, MissingDependency


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """Pretend that exactly these modules are installed, in these versions."""

    def pretend(**versions: str) -> None:
        monkeypatch.setattr(backends, "installed_version", versions.get)
        for name in backends.EXTRAS:
            module = ModuleType(name)
            module.__version__ = versions.get(name, "")  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, name, module)

    return pretend


def test_available_loads_no_library() -> None:
    assert set(available()) <= {"tensorrt", "tensorrt_rtx"}


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_folder").mkdir()
    (tmp_path / "tensorrt_file.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert backends.installed_version("tensorrt_folder") is None
    assert backends.installed_version("tensorrt_file") == "unknown"
    monkeypatch.setitem(sys.modules, "tensorrt_made", ModuleType("made by hand, with no file"))
    assert backends.installed_version("tensorrt_made") is None


@pytest.mark.parametrize("content", ["raise OSError('libnvinfer.so.10')", "import nonsense_", ""])
def test_a_module_that_does_not_load(
    tmp_path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(EngineError, match=r"'tensorrt' is installed but can't be loaded: .*[a-z]"):
        load("tensorrt")
    sys.modules.pop("tensorrt", None)


def test_tensorrt_is_preferred(installed) -> None:
    installed(tensorrt="10.9.0", tensorrt_rtx="1.7.1")
    assert (load().name, load().version) == ("tensorrt", "10.9.0")
    assert load("tensorrt_rtx").is_rtx
    assert load("tensorrt_rtx").label == "TensorRT for RTX 1.7.1"


def test_a_tensorrt_that_does_not_load_gives_way_to_rtx(
    installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tensorrt="10.9.0", tensorrt_rtx="1.7.1")
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # makes its import fail
    assert load().name == "tensorrt_rtx"
    with pytest.raises(EngineError, match="'tensorrt' is installed but can't be loaded"):
        load("tensorrt")


def test_absent_backend_names_its_extra(installed) -> None:
    installed(tensorrt_rtx="1.7.1")
    with pytest.raises(MissingDependency, match=r"ckv-export\[gpu\]"):
        load("tensorrt")
    installed()
    with pytest.raises(MissingDependency, match=r"ckv-export\[rtx\]"):
        load()


def test_unknown_backend_gets_a_hint() -> None:
    with pytest.raises(EngineError, match=r"got 'tensort'; did you mean 'tensorrt'\?"):
        load("tensort")


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0"])
def test_old_tensorrt_is_refused(installed, version: str) -> None:
    installed(tensorrt=version)
    with pytest.raises(EngineError, match=rf"TensorRT {version} is too old: install TensorRT 10"):
        load("tensorrt")


@pytest.mark.tensorrt
def test_rtx_loads_here(rtx: Backend) -> None:
    assert rtx.version == available()["tensorrt_rtx"]

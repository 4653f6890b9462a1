"""`plugin build` drives CMake: here over a stand-in project that compiles in a second."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from ckv_export.cli.main import main
from ckv_export.engine.plugin_build import (
    RECORD,
    PluginBuild,
    build_plugins,
    default_source,
)
from ckv_export.errors import EngineError

PROJECT = """
cmake_minimum_required(VERSION 3.16)
project(stand_in LANGUAGES C)
set(CKV_CUDA_TARGETS "75-real;120" CACHE STRING "")
message(STATUS "plugins for TensorRT 11.7")
add_library(ckv_plugins MODULE plugin.c)
add_library(helper MODULE plugin.c)
set_target_properties(ckv_plugins PROPERTIES OUTPUT_NAME ckv_plugins_trt11)
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which("cmake") is None or shutil.which("cc") is None:
        pytest.skip("cmake or a C compiler is missing")
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "CMakeLists.txt").write_text(PROJECT)
    (folder / "plugin.c").write_text("int answer(void) { return 42; }\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvcc").write_text("#!/bin/sh\n")
    (tools / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_libraries_and_record_arrive(source: Path, tmp_path: Path):
    lines: list[str] = []
    out = tmp_path / "new" / "out"
    built = build_plugins(PluginBuild(source, ("sm120", "sm86")), out, lines.append)
    library = out / "libckv_plugins_trt11.so"
    assert sorted(p.name for p in out.iterdir()) == sorted([library.name, RECORD])
    assert library.stat().st_mode & 0o777 == 0o755
    record = json.loads((out / RECORD).read_text())
    assert record["files"] == {library.name: hashlib.sha256(library.read_bytes()).hexdigest()}
    assert record["tensorrt"] == built.tensorrt == "11.7"
    assert record["targets"] == ["sm86", "sm120"]
    assert any("100%" in line for line in lines)


def test_every_target_by_default(source: Path, tmp_path: Path):
    built = build_plugins(PluginBuild(source), tmp_path / "out", lambda line: None)
    assert built.targets == ("sm75", "sm120")


def test_a_compile_error_is_told_and_leaves_nothing(source: Path, tmp_path: Path):
    (source / "plugin.c").write_text("int answer(void) { return nonsense; }\n")
    with pytest.raises(EngineError, match=r"cmake failed: .*nonsense"):
        build_plugins(PluginBuild(source), tmp_path / "out", lambda line: None)
    assert not (tmp_path / "out").exists()


def test_no_headers(source: Path, tmp_path: Path):
    (source / "CMakeLists.txt").write_text(PROJECT.replace("plugins for TensorRT 11.7", "none"))
    with pytest.raises(EngineError, match="headers were not found: give --tensorrt-root"):
        build_plugins(PluginBuild(source), tmp_path / "out", lambda line: None)


def test_headers_found_elsewhere_are_not_those_asked_for(source: Path, tmp_path: Path):
    """CMake's search goes on in the usual places, where another version may lie."""
    found = f'set(TensorRT_INCLUDE_DIR "{tmp_path / "trt" / "include"}" CACHE PATH "")'
    (source / "CMakeLists.txt").write_text(PROJECT + found)
    (tmp_path / "link").symlink_to(tmp_path / "trt")
    for root in ("trt", "link"):
        right = PluginBuild(source, tensorrt_root=tmp_path / root)
        build_plugins(right, tmp_path / "right", lambda line: None)
    wrong = PluginBuild(source, tensorrt_root=tmp_path / "typo")
    with pytest.raises(EngineError, match=r"typo has no TensorRT headers, .*trt/include has"):
        build_plugins(wrong, tmp_path / "wrong", lambda line: None)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("target", ["86", "sm", "sm86;rm", "ada"])
def test_odd_targets(target: str):
    with pytest.raises(EngineError, match="a GPU generation such as sm86"):
        PluginBuild(Path(), (target,))


def test_missing_tools_and_sources(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(EngineError, match="no plugin sources: give --source"):
        build_plugins(PluginBuild(tmp_path), tmp_path / "out", lambda line: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="needs cmake"):
        build_plugins(PluginBuild(source), tmp_path / "out", lambda line: None)
    tool(tmp_path / "cmake", "exit 1")
    with pytest.raises(EngineError, match="needs nvcc"):
        build_plugins(PluginBuild(source), tmp_path / "out", lambda line: None)


def tool(path: Path, does: str) -> None:
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("exit 3", "cmake failed: no message"),
        ("echo one; echo two; exit 3", "cmake failed: two"),
        ("echo one; echo Error: two >&2; echo three; exit 3", "cmake failed: Error: two"),
    ],
)
def test_what_a_failing_tool_said(source: Path, tmp_path: Path, does: str, says: str):
    tool(tmp_path / "tools" / "cmake", does)
    with pytest.raises(EngineError, match=f"{says}$"):
        build_plugins(PluginBuild(source), tmp_path / "out", lambda line: None)


def test_a_listener_that_fails_stops_the_tool(source: Path, tmp_path: Path):
    tool(tmp_path / "tools" / "cmake", "echo started; exec sleep 60")
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        build_plugins(PluginBuild(source), tmp_path / "out", lambda line: 1 // 0)
    assert time.monotonic() - started < 30


def test_the_folder_of_tensorrt_reaches_cmake():
    command = PluginBuild(Path("s"), tensorrt_root=Path("/trt")).configure_command(Path("b"))
    assert "-DTensorRT_ROOT=/trt" in command
    assert not any("ROOT" in word for word in PluginBuild(Path("s")).configure_command(Path("b")))


def test_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert main(["plugin", "build", f"--out={out}", f"--source={source}", "--target=sm90"]) == 0
    assert "TensorRT 11.7, sm90" in capsys.readouterr().out
    assert main(["plugin", "build", f"--out={out}", f"--source={tmp_path}"]) == 2
    assert "no plugin sources" in capsys.readouterr().err


def test_the_repository_has_the_sources():
    assert (default_source() / "CMakeLists.txt").is_file()

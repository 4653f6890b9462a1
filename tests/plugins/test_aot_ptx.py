"""Kernels inside the engine as PTX: what nvcc makes of them, where it is kept, what is missing."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from ckv_export.engine import aot_kernels, aot_plugin
from ckv_export.engine.aot_kernels import Compiler, Kernel
from ckv_export.engine.backends import Backend
from ckv_export.errors import EngineError


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    monkeypatch.setenv("CKV_EXPORT_CACHE", str(tmp_path / "cache"))
    return Compiler.find("sm80")


CORES = {"CKV_AOT_TILE": "4", "CKV_AOT_VALUES": "128"}


def attention(element: str, block: Mapping[str, str] = CORES, **macros: str) -> Kernel:
    base = {"CKV_AOT_T": element, "CKV_AOT_SCALE": "static_cast<float>(0x1.6a09e6p-3)", **block}
    source = "pooled_pointwise_attention" if macros else "pooled_attention"
    return Kernel(f"{source}.cu", f"ckv_{source}", tuple((base | macros).items()))


def on_tensor_cores(head: int, warps: int) -> dict[str, str]:
    return {"CKV_AOT_HEAD": str(head), "CKV_AOT_WARPS": str(warps)}


KERNELS = {
    "sm75": attention("__half", CKV_AOT_FLOAT_COUNT="true"),
    "sm80": attention("float", on_tensor_cores(32, 4)),
    "sm86": Kernel("pool_gather_concat.cu", "ckv_pool_gather_concat", (("CKV_AOT_BYTES", "2"),)),
    "sm89": attention("__nv_bfloat16", on_tensor_cores(128, 2)),
    "sm90": attention("__half"),
    "sm100": Kernel("pool_gather_concat.cu", "ckv_pool_gather_concat", (("CKV_AOT_BYTES", "4"),)),
    "sm120": attention("float", on_tensor_cores(64, 2), CKV_AOT_FLOAT_COUNT="true"),
}


@pytest.mark.parametrize("target", list(KERNELS))
def test_one_entry_for_every_target_without_a_warning(compiler: Compiler, target: str):
    kernel = KERNELS[target]
    ptx = dataclasses.replace(compiler, target=target).ptx(kernel)
    assert ptx.count(".entry") == 1
    assert f".visible .entry {kernel.symbol}(" in ptx
    assert f".target sm_{target[2:]}" in ptx
    # Nothing that a lone module could not resolve.
    assert ".extern .func" not in ptx


def test_compiled_once(compiler: Compiler, monkeypatch: pytest.MonkeyPatch):
    kernel = KERNELS["sm86"]
    first = compiler.ptx(kernel)
    monkeypatch.setattr(aot_kernels, "_run", lambda command: pytest.fail(f"ran {command}"))
    assert compiler.ptx(kernel) == first
    assert [p.suffix for p in compiler.cache.iterdir()] == [".ptx"]


def test_other_sources_are_other_kernels(compiler: Compiler, tmp_path: Path):
    copy = tmp_path / "plugins"
    for folder in ("aot", "kernels", "include"):
        shutil.copytree(compiler.sources / folder, copy / folder)
    other = dataclasses.replace(compiler, sources=copy)
    assert other.sha256 == compiler.sha256
    assert dataclasses.replace(compiler, target="sm90").sha256 != compiler.sha256
    hashes = {compiler.sha256}
    for file in ("aot/gather_entry.cuh", "kernels/tiling.h", "include/ckv/types.h"):
        with (copy / file).open("a") as text:
            text.write("// more\n")
        hashes.add(dataclasses.replace(other).sha256)
    (copy / file).rename(copy / f"{file}.old")
    hashes.add(dataclasses.replace(other).sha256)
    assert len(hashes) == 5


def test_each_kernel_target_and_compiler_has_ptx_of_its_own(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
):
    version, ran = ["release 1"], list[str]()

    def run(command: list[str]) -> str:
        if command[1] != "--version":
            ran.append(command[-1])
            Path(command[-1].removeprefix("--output-file=")).write_text(str(len(ran)))
        return version[0]

    def texts() -> list[str]:
        compilers = [dataclasses.replace(compiler, target=target) for target in ("sm80", "sm90")]
        return [c.ptx(KERNELS[name]) for c in compilers for name in ("sm86", "sm100")]

    monkeypatch.setattr(aot_kernels, "_run", run)
    assert texts() == texts() == ["1", "2", "3", "4"]
    version[0] = "release 2"
    assert texts() == ["5", "6", "7", "8"]


def test_a_compile_error_is_told_and_not_kept(compiler: Compiler):
    with pytest.raises(EngineError, match=r"nvcc failed: .*error"):
        compiler.ptx(Kernel("pool_gather_concat.cu", "x", (("CKV_AOT_BYTES", "nonsense"),)))
    assert list(compiler.cache.iterdir()) == []


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home, as in some containers, who has set nothing."""

    def home(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CKV_EXPORT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(home))


@pytest.mark.usefixtures("homeless")
def test_where_kernels_are_kept(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(EngineError, match=r"set CKV_EXPORT_CACHE .*home directory"):
        aot_kernels.cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert aot_kernels.cache_folder() == Path("/xdg/ckv-export")
    monkeypatch.setenv("CKV_EXPORT_CACHE", "/own")
    assert aot_kernels.cache_folder() == Path("/own")


def test_kernels_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch):
    for name in ("CKV_EXPORT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/a")
    assert aot_kernels.cache_folder() == Path("/home/a/.cache/ckv-export")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="needs nvcc"):
        Compiler.find("sm80")
    monkeypatch.setattr(aot_kernels, "default_source", lambda: tmp_path)
    with pytest.raises(EngineError, match="install ckv-export from a clone"):
        Compiler.find("sm80")
    old = Backend("tensorrt", ModuleType("tensorrt"), "10.6")
    with pytest.raises(EngineError, match=r"TensorRT 10\.6 has no ahead-of-time Python plugins"):
        aot_plugin._plugin_module(old)
    bare = ModuleType("tensorrt_without_plugins")
    bare.QuickPluginCreationRequest = None  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match=r"11\.4 can't load its Python plugins"):
        aot_plugin._plugin_module(Backend("tensorrt", bare, "11.4"))


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("", "no message"),
        ("echo out of order", "out of order"),
        ("echo a >&2; echo an Error: b >&2; echo c >&2", "an Error: b"),
    ],
)
def test_what_a_failing_compiler_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, told: str
):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{does}\nexit 1\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(EngineError) as failure:
        Compiler("sm80", tmp_path, tmp_path).ptx(KERNELS["sm86"])
    assert str(failure.value) == f"nvcc failed: {told}"

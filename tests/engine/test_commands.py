"""The vendor's command line for the same engine."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import ModuleType

import pytest
from ckv_testing.fake_builder import write_library

from ckv_export.contract import GraphSpec, Profile, Range, TensorSpec
from ckv_export.engine import Backend, BuildRequest, PluginChoice, Settings, trtexec_command
from ckv_export.errors import EngineError

SPEC = GraphSpec(
    "decode",
    (
        TensorSpec("cache_k_user", "float32", ("B", 1, "K", 2)),
        TensorSpec("user_a:b", "int32", ("B",)),
    ),
    (TensorSpec("score", "float32", ("B", "C")),),
)
PROFILE = Profile({"B": Range(1, 1, 64), "K": Range(0, 49, 49)})
TENSORRT_10 = Backend("tensorrt", ModuleType("tensorrt"), "10.13.2")
TENSORRT_11 = Backend("tensorrt", ModuleType("tensorrt"), "11.1.0")


def test_trtexec() -> None:
    request = BuildRequest(Path("a b/decode.onnx"), SPEC, PROFILE, workspace_mib=512)
    words = shlex.split(trtexec_command(request, TENSORRT_10, Path("out.plan")))
    assert words == [
        "trtexec",
        "--noTF32",
        "--stronglyTyped",
        "--onnx=a b/decode.onnx",
        "--saveEngine=out.plan",
        "--skipInference",
        "--minShapes=cache_k_user:1x1x0x2,'user_a:b':1",
        "--optShapes=cache_k_user:1x1x49x2,'user_a:b':1",
        "--maxShapes=cache_k_user:64x1x49x2,'user_a:b':64",
        "--memPoolSize=workspace:512M",
        "--profilingVerbosity=detailed",
    ]


def test_tensorrt_11_is_always_strongly_typed() -> None:
    request = BuildRequest(Path("decode.onnx"), SPEC, PROFILE, optimization_level=5)
    words = shlex.split(trtexec_command(request, TENSORRT_11))
    assert "--stronglyTyped" not in words
    assert "--saveEngine=decode.engine" in words
    assert "--builderOptimizationLevel=5" in words


@pytest.mark.tensorrt
def test_tensorrt_rtx(rtx: Backend) -> None:
    request = BuildRequest(Path("decode.onnx"), SPEC, PROFILE, targets=("ampere", "sm120"))
    words = shlex.split(trtexec_command(request, rtx))
    assert words[:4] == [
        "env",
        "NVIDIA_TF32_OVERRIDE=0",
        "tensorrt_rtx",
        "--computeCapabilities=80,86,120",
    ]


def test_missing_axis_is_refused_as_in_a_build() -> None:
    request = BuildRequest(Path("decode.onnx"), SPEC, Profile({"B": Range(1, 1, 4)}))
    with pytest.raises(EngineError, match="no range for the axis 'K'"):
        trtexec_command(request, TENSORRT_10)


def test_several_profiles_are_counted() -> None:
    long = Profile({"B": Range(1, 1, 2), "K": Range(0, 49, 49)})
    request = BuildRequest(Path("decode.onnx"), SPEC, PROFILE, more_profiles=(long,))
    words = shlex.split(trtexec_command(request, TENSORRT_11))
    at = words.index("--profile=0")
    assert words[at + 1 : at + 5] == [
        "--minShapes=cache_k_user:1x1x0x2,'user_a:b':1",
        "--optShapes=cache_k_user:1x1x49x2,'user_a:b':1",
        "--maxShapes=cache_k_user:64x1x49x2,'user_a:b':64",
        "--profile=1",
    ]
    assert words[at + 7] == "--maxShapes=cache_k_user:2x1x49x2,'user_a:b':2"


def test_settings_reach_the_command(tmp_path: Path) -> None:
    library = write_library(tmp_path, ["PooledAttention"])
    settings = Settings(PluginChoice("library", tmp_path), True, True, Path("t.cache"), True)
    request = BuildRequest(Path("decode.onnx"), SPEC, PROFILE, settings=settings)
    words = shlex.split(trtexec_command(request, TENSORRT_11))
    for word in (
        "--profilingVerbosity=detailed",
        "--versionCompatible",
        "--hardwareCompatibilityLevel=ampere+",
        "--timingCacheFile=t.cache",
        "--refit",
        f"--dynamicPlugins={library}",
        f"--setPluginsToSerialize={library}",
    ):
        assert word in words


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({"version_compatible": True}, "--versionCompatible"),
        ({"hardware_compatible": True}, "--hardwareCompatibilityLevel=ampere+"),
        ({"timing_cache": Path("t")}, "--timingCacheFile=t"),
        ({"refit": True}, "--refit"),
        ({"plugin": "library"}, "--dynamicPlugins={library}"),
    ],
)
def test_each_setting_is_a_word_of_its_own(tmp_path: Path, setting: dict, word: str) -> None:
    library = write_library(tmp_path, ["PooledAttention"])
    if "plugin" in setting:
        setting = {"plugin": PluginChoice("library", library)}
    requests = (
        BuildRequest(Path("decode.onnx"), SPEC, PROFILE, settings=settings)
        for settings in (Settings(), Settings(**setting))
    )
    plain, more = (shlex.split(trtexec_command(r, TENSORRT_11)) for r in requests)
    assert set(more) - set(plain) == {word.format(library=library)}


def test_names_at_which_the_tools_split_are_quoted() -> None:
    names = ("a,b", "a:b", "a-b")
    spec = GraphSpec("decode", tuple(TensorSpec(n, "int32", ("B",)) for n in names), ())
    words = shlex.split(trtexec_command(BuildRequest(Path("x.onnx"), spec, PROFILE), TENSORRT_11))
    assert "--maxShapes='a,b':64,'a:b':64,a-b:64" in words


def test_no_tool_embeds_kernels() -> None:
    settings = Settings(PluginChoice("embedded"))
    request = BuildRequest(Path("decode.onnx"), SPEC, PROFILE, settings=settings)
    assert trtexec_command(request, TENSORRT_11).startswith("# TensorRT 11.1.0's own tool takes no")

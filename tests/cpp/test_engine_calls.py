"""ckv::Engine against a TensorRT and a CUDA of our own, under the thread sanitizer.

They are a few functions on the CPU, see engines/cpp/tests/fake. The interfaces have far more, which
differ from version to version: stubs of those are made here, from the headers at hand.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ckv_testing.cmake import ROOT, cuda_headers

CPP = ROOT / "engines" / "cpp"
FAKE = CPP / "tests" / "fake"
CLASSES = {
    "RuntimeStubs": ("NvInferImpl.h", "VRuntime", "nvinfer1::apiv::VRuntime"),
    "CudaEngineStubs": ("NvInferImpl.h", "VCudaEngine", "nvinfer1::apiv::VCudaEngine"),
    "ExecutionContextStubs": (
        "NvInferImpl.h",
        "VExecutionContext",
        "nvinfer1::apiv::VExecutionContext",
    ),
    "PluginRegistryStubs": (
        "NvInferRuntimeCommon.h",
        "IPluginRegistry",
        "nvinfer1::IPluginRegistry",
    ),
}


@pytest.fixture(scope="module")
def tensorrt_headers() -> Path:
    """Folder of TensorRT's headers."""
    variable = "TensorRT_ROOT"  # as CMake has it
    folder = Path(os.environ.get(variable, "/usr/local/tensorrt")) / "include"
    if not (folder / "NvInferRuntime.h").exists():
        pytest.skip("TensorRT's headers are not here: set TensorRT_ROOT")
    return folder


def stubs(headers: Path) -> str:
    """A class for each interface, whose every function ends the process."""
    out = ["#pragma once", "#include <NvInferRuntime.h>", "#include <cstdlib>"]
    out += ["using namespace nvinfer1;", "using namespace nvinfer1::apiv;"]
    for name, (file, interface, base) in CLASSES.items():
        text = re.sub(r"//.*", "", (headers / file).read_text())
        text = re.sub(r"/\*.*?\*/|\bTRT_NODISCARD\b|\bTRT_DEPRECATED\b", "", text, flags=re.DOTALL)
        body = re.search(
            rf"^class {interface}\b[^;]*?\{{(.*?)^\}};", text, re.MULTILINE | re.DOTALL
        )
        assert body is not None, f"{file} has no {interface}"
        functions = re.findall(r"virtual ([^;{}]*?)= 0;", body[1], re.DOTALL)
        out.append(f"class {name} : public {base} {{\npublic:")
        for function in functions:
            if "~" not in function:
                plain = re.sub(r"\s*=\s*[^,)]+", "", " ".join(function.split()))
                out.append(f"    {plain} override {{ std::abort(); }}")
        out.append("};")
    return "\n".join(out) + "\n"


PROGRAMS = ("test_engine_loading", "test_engine_calls")


@pytest.fixture(scope="module")
def programs(tensorrt_headers: Path, engine_build: Path) -> Path:
    """The folder of `PROGRAMS`, linked to the fakes."""
    made = engine_build / "fake"
    if made.exists():
        return made
    folder = Path(tempfile.mkdtemp(dir=engine_build))
    (folder / "stubs.h").write_text(stubs(tensorrt_headers))
    sources = [
        *sorted(FAKE.glob("*.cpp")),
        CPP / "src/engine.cpp",
        CPP / "src/tensorrt_runtime.cpp",
    ]
    options = ["-std=c++17", "-O0", "-fsanitize=thread", "-pthread"]
    includes = [f"-I{CPP / 'include'}", f"-I{folder}", "-isystem", tensorrt_headers]
    options += [*includes, "-isystem", cuda_headers()]
    objects = {source.stem: folder / f"{source.stem}.o" for source in sources}
    with ThreadPoolExecutor(2) as compilers:
        for done in [
            compilers.submit(compile_with, *options, "-c", source, "-o", objects[source.stem])
            for source in sources
        ]:
            done.result()
    library = [path for name, path in objects.items() if name not in PROGRAMS]
    for name in PROGRAMS:
        parts = (objects[name], *library, engine_build / "libckv.a")
        compile_with(*options, *parts, "-o", folder / name)
    return folder.rename(made)


def compile_with(*arguments: object) -> None:
    command = ["nice", "c++", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str, programs: Path, tmp_path: Path):
    done = subprocess.run(
        [programs / name, tmp_path], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.parametrize("root", ["tensorrt-10.9", "tensorrt-10.16", "tensorrt"])
def test_the_engine_compiles_for_each_tensorrt(root: str, engine_build: Path):
    headers = Path("/usr/local") / root / "include"
    if not (headers / "NvInferRuntime.h").exists():
        pytest.skip(f"{headers} is not here")
    options = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    includes = [f"-I{CPP / 'include'}", "-isystem", headers, "-isystem", cuda_headers()]
    compile_with(*options, *includes, CPP / "src/engine.cpp", CPP / "src/tensorrt_runtime.cpp")

"""The library's own tests, also under sanitizers; the installed package; programs built with it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from ckv_cpp import run, write_manifest
from ckv_testing.cmake import ROOT, onnxruntime_option, rtx_library
from ckv_testing.records import LAYOUTS, MANIFESTS, user

from ckv_export.cache.record import encode
from ckv_export.manifest import EngineEntry

CPP = ROOT / "engines" / "cpp"
PARTS = ("engine", "session")
CORE = ("buckets", "error", "manifest", "record", "tensor", "tensor_file")
HEADERS = {f"{name}.h" for name in (*CORE, *PARTS)}
PROGRAMS = {"hashes", "manifest", "records", "record_numbers", "calls"}
FUZZED = ("every kind of feature, int8", "HSTU with time, float16", "item table, float16")


def ctest(folder: Path) -> list[str]:
    """Names of the tests that ran and passed."""
    out = run("ctest", "--test-dir", folder, "--output-on-failure")
    return re.findall(r"Test +#\d+: (\w+) \.+ +Passed", out)


def test_its_own_tests(cpp_build: Path):
    assert set(ctest(cpp_build)) >= PROGRAMS


def test_its_own_tests_under_sanitizers(sanitized_build: Path):
    assert set(ctest(sanitized_build)) == PROGRAMS


def test_the_engine_without_a_gpu(engine_build: Path):
    program = engine_build / "tests" / "test_engine"
    if not program.exists():
        pytest.skip("no TensorRT library to link: pip install 'ckv-export[rtx]'")
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("there is a GPU: test_gpu.py runs real engines")
    assert done.returncode == 0, done.stderr
    assert re.match(r"TensorRT (for RTX )?\d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize("name", FUZZED)
def test_hostile_records_under_sanitizers(name: str, sanitized_build: Path, tmp_path, rng, seed):
    manifest, user_dtype = name.rsplit(", ", 1)
    bundle = write_manifest(tmp_path / "bundle", MANIFESTS[manifest])
    files = []
    for events in (0, 1, 3, 7, 20):
        files.append(tmp_path / f"{events}.record")
        files[-1].write_bytes(encode(LAYOUTS[name], user(LAYOUTS[name], events, rng)))
    code = {"float32": 0, "float16": 1, "int8": 2}[user_dtype]
    program = sanitized_build / "tests" / "fuzz_records"
    out = run(program, 1.5, seed, bundle, code, *files)
    tried, taken = map(int, re.findall(r"\d+", out))
    assert tried > 1000
    assert 0 < taken < tried, "mutations never got past the checksums, or all did"


@pytest.fixture(scope="session")
def installed(cpp_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library installed into a prefix of its own."""
    prefix = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", cpp_build, "--prefix", prefix)
    return prefix


def test_what_is_installed(installed: Path, cpp_build: Path):
    headers = {path.name for path in (installed / "include" / "ckv").iterdir()}
    absent = {f"{part}.h" for part in PARTS if not (cpp_build / f"libckv_{part}.a").exists()}
    assert headers == HEADERS - absent
    for config in installed.rglob("*.cmake"):
        assert str(CPP) not in config.read_text(), "the installed package must not need its sources"


CONSUMER = """\
cmake_minimum_required(VERSION 3.24)
project(consumer LANGUAGES CXX)
find_package(ckv 0.1 REQUIRED{components})
add_executable(consumer main.cpp)
target_compile_options(consumer PRIVATE -Wall -Wextra -Werror)
target_link_libraries(consumer PRIVATE {libraries})
"""
COUNT = """\
#include <ckv/record.h>

#include <cstdio>
#include <fstream>
#include <iterator>

int main(int, char** argv) {
    auto const layout = ckv::RecordLayout::of(ckv::Bundle::open_unverified(argv[1]).manifest);
    std::ifstream file(argv[2], std::ios::binary);
    std::vector<std::uint8_t> const record(std::istreambuf_iterator<char>(file), {});
    std::printf("%lld events\\n", static_cast<long long>(ckv::count(layout, record)));
}
"""
VERSION = """\
#include <ckv/{part}.h>

#include <cstdio>

int main() {{ std::puts(ckv::{library}_version().c_str()); }}
"""


def consume(installed: Path, folder: Path, program: str, components: str, libraries: str) -> Path:
    """A program of another project, built with the installed library."""
    folder.mkdir()
    text = CONSUMER.format(components=components, libraries=libraries)
    (folder / "CMakeLists.txt").write_text(text)
    (folder / "main.cpp").write_text(program)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    prefix = f"-DCMAKE_PREFIX_PATH={installed}"
    run("cmake", "-S", folder, "-B", folder / "build", *generator, prefix)
    run("cmake", "--build", folder / "build")
    return folder / "build" / "consumer"


def test_another_project_finds_and_uses_it(installed: Path, tmp_path: Path, rng):
    program = consume(installed, tmp_path / "consumer", COUNT, "", "ckv::ckv")
    bundle = write_manifest(tmp_path / "bundle", MANIFESTS["two ids"])
    layout = LAYOUTS["two ids, float16"]
    (tmp_path / "record").write_bytes(encode(layout, user(layout, 17, rng)))
    assert run(program, bundle, tmp_path / "record") == "17 events\n"


def test_another_project_uses_the_engine(installed: Path, engine_build: Path, tmp_path: Path):
    library = rtx_library()
    if library is None:
        pytest.skip("no TensorRT library to link: pip install 'ckv-export[rtx]'")
    program = VERSION.format(part="engine", library="tensorrt")
    libraries = f"ckv::engine {library}"
    made = consume(installed, tmp_path / "consumer", program, " COMPONENTS engine", libraries)
    assert run(made).startswith("TensorRT for RTX 1.")


def test_another_project_uses_the_session(installed: Path, session_build: Path, tmp_path: Path):
    (option,) = onnxruntime_option()
    program = VERSION.format(part="session", library="onnxruntime")
    libraries = f"ckv::session {option.partition('=')[2]}"
    made = consume(installed, tmp_path / "consumer", program, " COMPONENTS session", libraries)
    assert run(made) == f"{version('onnxruntime')}\n"


@pytest.mark.parametrize(
    ("part", "needs"), [("engine", "CUDA and TensorRT are"), ("session", "ONNX Runtime is")]
)
def test_a_package_without_a_part_says_so(
    part: str, needs: str, sanitized_build: Path, tmp_path: Path
):
    run("cmake", "--install", sanitized_build, "--prefix", tmp_path / "prefix")
    folder = tmp_path / "consumer"
    folder.mkdir()
    text = CONSUMER.format(components=f" COMPONENTS {part}", libraries=f"ckv::{part}")
    (folder / "CMakeLists.txt").write_text(text)
    prefix = f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}"
    command = ["cmake", "-S", str(folder), "-B", str(folder / "build"), prefix]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    sentence = f"this ckv was built without its {part}: build it where {needs} found"
    assert sentence in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "usage: score BUNDLE RECORD ITEM..."),
        (("nowhere", "-", 1), "nowhere is no bundle: there is no such folder"),
    ],
)
def test_the_example_says_what_is_wrong(engine_build: Path, arguments, words: str):
    program = engine_build / "ckv_score"
    if not program.exists():
        pytest.skip("no TensorRT library to link: pip install 'ckv-export[rtx]'")
    command = [str(part) for part in (program, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"score: {words}\n"


def test_the_example_without_a_gpu(engine_build: Path, tmp_path: Path):
    program = engine_build / "ckv_score"
    if not program.exists():
        pytest.skip("no TensorRT library to link: pip install 'ckv-export[rtx]'")
    version = run(engine_build / "tests" / "test_engine").split()[-1]
    (tmp_path / "engines").mkdir()
    for name in ("prefill.onnx", "decode.onnx", "engines/decode"):
        (tmp_path / name).write_bytes(b"")
    entry = EngineEntry("decode", "engines/decode", "tensorrt_rtx", version, (), {}, 1, 1.0)
    manifest = dataclasses.replace(MANIFESTS["two ids"], engines=(entry,))
    manifest.with_files(tmp_path).write(tmp_path)
    command = [str(part) for part in (program, tmp_path, "-", 1, 2)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: test_gpu.py runs real engines")
    assert done.stderr.startswith("score: running an engine needs an NVIDIA GPU: ")


def test_presets(cpp_build: Path):
    listed = run("cmake", "--list-presets", cwd=CPP)
    assert re.findall(r'"(\w+)"', listed) == ["release", "cpu", "sanitize"]


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_a_public_header_stands_alone_without_tensorrt_and_cuda(name: str, cpp_build, tmp_path):
    text = (CPP / "include" / "ckv" / name).read_text()
    included = re.findall(r"#include <(.*?)>", text)
    assert not [i for i in included if "/" in i and not i.startswith("ckv/")]
    assert not [i for i in included if i.endswith(".h") and not i.startswith("ckv/")]
    source = tmp_path / "main.cpp"
    source.write_text(f"#include <ckv/{name}>\n#include <ckv/{name}>\n")
    run("c++", "-std=c++17", "-fsyntax-only", "-Wall", "-Werror", f"-I{CPP}/include", source)


SNIPPET = """\
#include <ckv/engine.h>
#include <ckv/record.h>
#include <ckv/session.h>

void example(std::vector<std::uint8_t>& record, std::int64_t events, ckv::Sizes const& sizes,
             std::map<std::string, void*> const& host, ckv::Buffers const& device,
             std::map<std::string, void const*> const& outputs, CUstream_st* stream) {
"""


def test_what_the_readme_shows_compiles(cpp_build: Path, tmp_path: Path):
    blocks = re.findall(r"```cpp\n(.*?)```", (CPP / "README.md").read_text(), re.DOTALL)
    source = tmp_path / "main.cpp"
    source.write_text(SNIPPET + "".join(blocks) + "}\n")
    run("c++", "-std=c++17", "-fsyntax-only", "-Wall", "-Werror", f"-I{CPP}/include", source)


def test_every_command_of_the_readmes_is_one_that_ran(cpp_build: Path, installed: Path):
    """The builds of this session are made with these commands, in folders of their own."""
    block = re.search(r"### C\+\+.*?```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    assert block[1].splitlines() == [
        "cmake -S engines/cpp -B build/cpp && cmake --build build/cpp && "
        "ctest --test-dir build/cpp",
        "cmake --install build/cpp --prefix /opt/ckv",
    ]
    indented = re.findall(r"^    (cmake .*)$", (CPP / "README.md").read_text(), re.MULTILINE)
    assert any("--preset release" in line for line in indented)
    presets = run("cmake", "--list-presets", cwd=CPP)
    for preset in re.findall(r"--preset (\w+)", (CPP / "README.md").read_text()):
        assert f'"{preset}"' in presets

"""The doctor names what is here and how to get the rest, and never fails."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ckv_export import doctor
from ckv_export.doctor import Finding, collect, to_dict, to_table

NAMES = [
    "python",
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "matplotlib",
    "pyarrow",
    "redis",
    "tritonclient",
    "ray",
    "polygraphy",
    "GPU",
    "nvcc",
    "cmake",
    "C++ compiler",
    "TensorRT headers",
]


def find(name: str) -> Finding:
    return next(f for f in collect() if f.name == name)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a program that prints a text (and ends with a status) first on the path."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name: str, text: str, status: int = 0) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{text}'\nexit {status}\n")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch):
    """Pretend that these packages are installed, and no other."""

    def pretend(**versions: str) -> None:
        monkeypatch.setattr(doctor, "_installed", lambda p: versions.get(p.name))

    return pretend


def test_everything_is_looked_for_once() -> None:
    findings = collect()
    assert [f.name for f in findings] == NAMES
    for finding in findings:
        assert finding.status in ("ok", "missing", "limited")
        assert finding.found
        assert finding.allows
        assert bool(finding.how) == (finding.status != "ok"), finding


def test_what_this_suite_runs_on_is_found() -> None:
    for name in ("python", "torch", "onnx", "onnxscript"):
        assert find(name).status == "ok"


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from ckv_export.doctor import collect; collect(); "
        "print([m for m in ('torch', 'onnx', 'tensorrt_rtx', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_least_versions_are_those_of_the_project() -> None:
    requirements = importlib.metadata.requires("ckv-export") or []
    for package in doctor.PACKAGES:
        extra = f'extra == "{package.extra}"' if package.extra else ""
        wanted = [r for r in requirements if r.partition("; ")[2] == extra]
        least = next(
            m[2]
            for r in wanted
            if (m := re.match(rf"{package.name}(\[.*\])?>=([\d.]+)", r.partition(";")[0]))
        )
        assert doctor._number(f"{least}.0") == package.least, package.name


def test_missing_package_names_its_extra(packages) -> None:
    packages()
    assert find("tensorrt_rtx").how == "pip install 'ckv-export[rtx]'"
    assert find("torch").how == "pip install 'ckv-export'"
    assert {find(p.name).status for p in doctor.PACKAGES} == {"missing"}


def test_old_package_is_limited(packages) -> None:
    packages(onnx="1.15.0")
    finding = find("onnx")
    assert (finding.status, finding.found) == ("limited", "1.15.0, needs 1.22 or later")


def test_tensorrt_without_a_gpu_is_limited(packages, program) -> None:
    packages(tensorrt="10.13.2", tensorrt_rtx="1.7.1.116")
    full, rtx = find("tensorrt"), find("tensorrt_rtx")
    assert (full.status, full.found) == ("limited", "10.13.2, but no GPU")
    assert rtx.status == "ok"
    assert "running them needs one" in rtx.allows


def test_gpu_is_described(packages, program) -> None:
    program("nvidia-smi", "NVIDIA H100 80GB HBM3, 9.0, 81559 MiB, 580.65.06")
    packages(torch="2.13.0", tensorrt="10.13.2")
    gpu = find("GPU")
    assert (gpu.status, gpu.found) == (
        "ok",
        "NVIDIA H100 80GB HBM3, sm90, 81559 MiB, driver 580.65.06",
    )
    assert find("tensorrt").status == "ok"


def test_gpu_with_a_cpu_build_of_torch(packages, program) -> None:
    program("nvidia-smi", "NVIDIA L4, 8.9, 23034 MiB, 580.65.06")
    packages(torch="2.13.0+cpu")
    assert find("GPU").status == "limited"
    assert "torch is CPU-only" in find("GPU").found


def test_driver_that_fails_is_no_gpu(program) -> None:
    program("nvidia-smi", "NVIDIA-SMI has failed", status=9)
    assert find("GPU").status == "missing"


def test_tools_are_read(program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    program("nvcc", "Cuda compilation tools, release 13.0, V13.0.48")
    program("cmake", "cmake version 3.25.1")
    program("c++", "c++ (Debian) 12.2.0")
    assert find("nvcc").found.startswith("13.0 (")
    assert find("cmake").found == "3.25.1"
    assert find("C++ compiler").found == "c++ (Debian) 12.2.0"


def test_tools_are_missed(program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(doctor.Path, "is_file", lambda self: False)
    for name in ("nvcc", "cmake", "C++ compiler", "TensorRT headers"):
        assert find(name).status == "missing"


@pytest.mark.parametrize(
    ("macro", "module", "status"),
    [
        ("TRT_MAJOR_ENTERPRISE", None, "ok"),
        ("NV_TENSORRT_MAJOR", "10.13.2", "ok"),
        ("NV_TENSORRT_MAJOR", "11.1.0", "limited"),
    ],
)
def test_headers_must_match_the_module(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packages,
    macro: str,
    module: str | None,
    status: str,
) -> None:
    include = tmp_path / "include"
    include.mkdir()
    (include / "NvInferRuntime.h").touch()
    (include / "NvInferVersion.h").write_text(f"#define {macro} 10 //!< major\n")
    monkeypatch.setenv("TensorRT_ROOT", str(tmp_path))
    packages(**({"tensorrt": module} if module else {}))
    finding = find("TensorRT headers")
    assert finding.status == status
    assert finding.found.startswith(f"10 in {include}")


def test_a_probe_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise PermissionError("no entry")

    monkeypatch.setattr(doctor, "_gpus", broken)
    finding = find("GPU")
    assert finding.status == "limited"
    assert "PermissionError: no entry" in finding.found


def test_table_keeps_brackets_and_json_keeps_all() -> None:
    findings = [
        Finding("tensorrt_rtx", "missing", "not installed", "x", "pip install 'ckv-export[rtx]'")
    ]
    text = io.StringIO()
    Console(file=text, width=200).print(to_table(findings))
    assert "ckv-export[rtx]" in text.getvalue()
    assert json.loads(json.dumps(to_dict(findings))) == {
        "findings": [
            {
                "name": "tensorrt_rtx",
                "status": "missing",
                "found": "not installed",
                "allows": "x",
                "how": "pip install 'ckv-export[rtx]'",
            }
        ]
    }
    assert os.linesep not in findings[0].how

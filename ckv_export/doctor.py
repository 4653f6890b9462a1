"""What this machine has, what that allows, and how to get what is missing.

Every probe answers with a `Finding` and never raises: a broken installation is a finding
too. Packages are read from their metadata; only ONNX Runtime is imported, for its providers.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

OK = "ok"
MISSING = "missing"
LIMITED = "limited"
STYLES = {OK: "green", MISSING: "red", LIMITED: "yellow"}

PROBE_SECONDS = 20


@dataclass(frozen=True)
class Finding:
    """One thing looked for.

    `status`: ok, missing or limited; `found`: version or place, or why it can't be used;
    `allows`: what it is for; `how`: how to get it, or "" when it is there.
    """

    name: str
    status: str
    found: str
    allows: str
    how: str


@dataclass(frozen=True)
class Package:
    """A Python package: module name, least version, extra that installs it, and its use."""

    name: str
    least: tuple[int, int]
    extra: str
    allows: str
    distributions: tuple[str, ...] = ()


PACKAGES = (
    Package("torch", (2, 13), "", "reading models, export, the reference for parity"),
    Package("onnx", (1, 22), "", "export"),
    Package("onnxscript", (0, 7), "", "export"),
    Package(
        "onnxruntime",
        (1, 23),
        "cpu",
        "parity and serving on a CPU",
        ("onnxruntime-gpu", "onnxruntime"),
    ),
    Package("tensorrt", (10, 9), "gpu", "engines built on the GPU that runs them"),
    Package("tensorrt_rtx", (1, 7), "rtx", "engines built ahead of time, without a GPU"),
    Package("matplotlib", (3, 8), "plot", "plots of cache and benchmarks"),
    Package("pyarrow", (16, 0), "parquet", ".parquet files, bulk prefill of a store"),
    Package("redis", (5, 1), "redis", "a store of user records in Redis"),
    Package("tritonclient", (2, 50), "triton", "writing Triton repositories"),
    Package("ray", (2, 40), "ray", "bulk prefill on a cluster"),
    Package("polygraphy", (0, 49), "dev", "inspecting graphs and engines"),
)


def collect() -> list[Finding]:
    """Probe everything. Never raises; takes a few seconds at most."""
    probes: list[tuple[str, Callable[[], Finding]]] = [("python", _python)]
    probes += [(p.name, _package_probe(p)) for p in PACKAGES]
    probes += [
        ("GPU", _gpu),
        ("nvcc", _nvcc),
        ("cmake", _cmake),
        ("C++ compiler", _compiler),
        ("TensorRT headers", _headers),
    ]
    return [_safely(name, probe) for name, probe in probes]


def to_table(findings: Iterable[Finding]) -> Table:
    """Lay the findings out for a terminal, what is missing with how to get it."""
    heads = ("what", "status", "found", "allows", "how to get it")
    table = Table(*(Column(head, overflow="fold") for head in heads))
    for f in findings:
        status = Text(f.status, style=STYLES.get(f.status, ""))
        table.add_row(Text(f.name), status, *map(Text, (f.found, f.allows, f.how)))
    return table


def to_dict(findings: Iterable[Finding]) -> dict[str, Any]:
    """Plain JSON data: ``{"findings": [{"name": .., "status": .., ...}, ...]}``."""
    return {"findings": [dataclasses.asdict(f) for f in findings]}


def _safely(name: str, probe: Callable[[], Finding]) -> Finding:
    try:
        return probe()
    except Exception as error:
        reason = f"the check failed: {type(error).__name__}: {error}"
        return Finding(name, LIMITED, reason, "unknown", "report this")


def _python() -> Finding:
    version = platform.python_version()
    good = sys.version_info >= (3, 10)
    how = "" if good else "install Python 3.10 or later"
    return Finding("python", OK if good else LIMITED, version, "everything", how)


def _package_probe(package: Package) -> Callable[[], Finding]:
    return lambda: _package(package)


def _package(package: Package) -> Finding:
    extra = f"[{package.extra}]" if package.extra else ""
    how = f"pip install 'ckv-export{extra}'"
    version = _installed(package)
    if version is None:
        return Finding(package.name, MISSING, "not installed", package.allows, how)
    if _number(version) < package.least:
        least = ".".join(map(str, package.least))
        return Finding(
            package.name, LIMITED, f"{version}, needs {least} or later", package.allows, how
        )
    refine = _REFINEMENTS.get(package.name)
    good = Finding(package.name, OK, version, package.allows, "")
    return refine(good) if refine else good


def _installed(package: Package) -> str | None:
    spec = importlib.util.find_spec(package.name)
    # A mere folder of that name on the path is a namespace package: it has no origin.
    if spec is None or spec.origin is None:
        return None
    for distribution in package.distributions or (package.name,):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return str(importlib.import_module(package.name).__version__)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2])


def _with_providers(finding: Finding) -> Finding:
    providers = importlib.import_module("onnxruntime").get_available_providers()
    names = [p.removesuffix("ExecutionProvider") for p in providers]
    found = f"{finding.found} ({', '.join(names)})"
    allows = f"{finding.allows}, and on a GPU" if "CUDA" in names else finding.allows
    return dataclasses.replace(finding, found=found, allows=allows)


def _needs_gpu(finding: Finding) -> Finding:
    if _gpus():
        return finding
    return dataclasses.replace(
        finding,
        status=LIMITED,
        found=f"{finding.found}, but no GPU",
        how="use a machine with an NVIDIA GPU, or tensorrt_rtx",
    )


def _build_only(finding: Finding) -> Finding:
    allows = f"{finding.allows}{'; running them' if _gpus() else ' (running them needs one)'}"
    return dataclasses.replace(finding, allows=allows)


_REFINEMENTS = {
    "onnxruntime": _with_providers,
    "tensorrt": _needs_gpu,
    "tensorrt_rtx": _build_only,
}


def _gpu() -> Finding:
    allows = "running engines and plugins, benchmarks"
    gpus = _gpus()
    if not gpus:
        how = "use a machine with an NVIDIA GPU and driver; export and RTX builds need none"
        return Finding("GPU", MISSING, "none", allows, how)
    torch = next(p for p in PACKAGES if p.name == "torch")
    if (_installed(torch) or "").endswith("+cpu"):
        how = "install a CUDA build of torch (https://pytorch.org)"
        return Finding("GPU", LIMITED, f"{'; '.join(gpus)}, but torch is CPU-only", allows, how)
    return Finding("GPU", OK, "; ".join(gpus), allows, "")


def _gpus() -> list[str]:
    """List the GPUs as "name, sm90, memory, driver"; asked of nvidia-smi to spare torch."""
    query = "--query-gpu=name,compute_cap,memory.total,driver_version"
    lines = _output("nvidia-smi", query, "--format=csv,noheader").splitlines()
    return [", ".join(_gpu_fields(line)) for line in lines if line.count(",") == 3]


def _gpu_fields(line: str) -> tuple[str, ...]:
    name, capability, memory, driver = (part.strip() for part in line.split(","))
    return name, f"sm{capability.replace('.', '')}", memory, f"driver {driver}"


def _nvcc() -> Finding:
    allows = "building the CUDA kernels of the plugins"
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    path = shutil.which("nvcc") or next(
        (str(p) for home in homes if home and (p := Path(home) / "bin" / "nvcc").is_file()), None
    )
    release = re.search(r"release (\S+),", _output(path, "--version")) if path else None
    if not path or not release:
        how = "install the CUDA toolkit (https://developer.nvidia.com/cuda-toolkit)"
        return Finding("nvcc", MISSING, "not found", allows, how)
    return Finding("nvcc", OK, f"{release[1]} ({path})", allows, "")


def _cmake() -> Finding:
    allows = "building plugins and the C++ library"
    version = re.search(r"version (\S+)", _output("cmake", "--version"))
    if not version:
        return Finding("cmake", MISSING, "not found", allows, "pip install cmake")
    return Finding("cmake", OK, version[1], allows, "")


def _compiler() -> Finding:
    allows = "building plugins and the C++ library"
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++", "cl")):
        if shutil.which(name):
            first = _output(name, "--version").splitlines()[:1]
            return Finding("C++ compiler", OK, first[0] if first else name, allows, "")
    how = "apt install g++, or the C++ compiler of your system"
    return Finding("C++ compiler", MISSING, "not found", allows, how)


def _headers() -> Finding:
    name, allows = "TensorRT headers", "building the TensorRT plugin"
    how = "unpack a TensorRT archive (or apt install libnvinfer-headers-dev), set TensorRT_ROOT"
    folder = next((f for f in _header_folders() if (f / "NvInferRuntime.h").is_file()), None)
    if folder is None:
        return Finding(name, MISSING, "no NvInferRuntime.h", allows, how)
    major = _header_major(folder)
    package = next(p for p in PACKAGES if p.name == "tensorrt")
    installed = _installed(package)
    if installed and major and _number(installed)[0] != int(major):
        found = f"{major} in {folder}, but the tensorrt module is {installed}"
        return Finding(name, LIMITED, found, allows, "use headers of the same major version")
    return Finding(name, OK, f"{major or 'version unknown'} in {folder}", allows, "")


def _header_folders() -> list[Path]:
    roots = [os.environ.get(name) for name in ("TensorRT_ROOT", "TENSORRT_ROOT", "TRT_ROOT")]
    places = ("/usr/include", "/usr/local/include", "/usr/local/tensorrt/include")
    system = Path("/usr/include") / f"{platform.machine()}-linux-gnu"
    return [*(Path(root) / "include" for root in roots if root), system, *map(Path, places)]


def _header_major(folder: Path) -> str | None:
    version = folder / "NvInferVersion.h"
    text = version.read_text(errors="replace") if version.is_file() else ""
    for macro in ("TRT_MAJOR_ENTERPRISE", "NV_TENSORRT_MAJOR"):
        if found := re.search(rf"#define\s+{macro}\s+(\d+)", text):
            return found[1]
    return None


def _output(program: str, *arguments: str) -> str:
    """Return what a program prints; "" if it is absent, fails or takes too long."""
    try:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout

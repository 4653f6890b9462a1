"""Compile plugins/torch/binding.cpp with the kernels and load them as `torch.ops.ckv_kernels`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

PLUGINS = Path(__file__).resolve().parents[1]


def why_not() -> str | None:
    """Why the kernels can't run here, as a sentence; None where they can."""
    if not torch.cuda.is_available():
        return "the kernels need an NVIDIA GPU that PyTorch can use, and none is here."
    for program in ("nvcc", "ninja"):
        if shutil.which(program) is None:
            return f"the kernels are compiled on the spot, and {program} is not installed."
    return None


def toolkit() -> str | None:
    """The folder of the CUDA toolkit that nvcc is of, as it says itself.

    What the PATH has may be a script or a link, and PyTorch takes the folder above for CUDA's.
    """
    command = ["nvcc", "--dryrun", "-x", "cu", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    return None if found is None else os.path.normpath(found[1])


def built() -> Path | None:
    """The kernels as the `native` preset has compiled them, unless a source has changed since."""
    library = PLUGINS / "build" / "native" / "libckv_kernels.a"
    sources = [path for name in ("kernels", "include") for path in (PLUGINS / name).rglob("*.*")]
    sources += PLUGINS.glob("CMake*")
    newest = max((path.stat().st_mtime for path in sources), default=0.0)
    return library if library.is_file() and library.stat().st_mtime > newest else None


def load(verbose: bool = False) -> Any:
    """`torch.ops.ckv_kernels` for the GPU of this machine; a minute the first time.

    Kernels that CMake has built are linked, so that what ckv_harness checked is what is timed, and
    compiled otherwise. The build is cached in plugins/build/torch (git-ignored).
    """
    from torch.utils import cpp_extension

    if not (os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")):
        cpp_extension.CUDA_HOME = toolkit() or cpp_extension.CUDA_HOME
    library = built()
    compiled = sorted((PLUGINS / "kernels").glob("*.cu")) if library is None else []
    folder = PLUGINS / "build" / "torch"
    if library is not None:
        # Another library is another build: ninja is not told that this one depends on it.
        folder /= hashlib.sha256(library.read_bytes()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    # Named here, or TORCH_CUDA_ARCH_LIST, which NVIDIA's images set, adds every other GPU's code.
    gpu = "".join(map(str, torch.cuda.get_device_capability()))
    sources = [
        PLUGINS / "torch" / "binding.cpp",
        PLUGINS / "harness" / "exponentials.cu",
        *compiled,
    ]
    cpp_extension.load(
        name="ckv_kernels",
        sources=[str(source) for source in sources],
        extra_include_paths=[str(PLUGINS / name) for name in ("include", "kernels", "harness")],
        extra_ldflags=[] if library is None else [str(library)],
        extra_cflags=["-O2"],
        extra_cuda_cflags=["-O3", f"-gencode=arch=compute_{gpu},code=sm_{gpu}"],
        build_directory=str(folder),
        is_python_module=False,
        verbose=verbose,
    )
    return torch.ops.ckv_kernels

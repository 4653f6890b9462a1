"""Compile plugins/torch/binding.cpp with the kernels and load them as `torch.ops.ckv_kernels`."""

from __future__ import annotations

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


def load(verbose: bool = False) -> Any:
    """`torch.ops.ckv_kernels`, compiled for the GPU of this machine; a minute the first time.

    The build is cached in plugins/build/torch (git-ignored).
    """
    from torch.utils import cpp_extension

    if not (os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")):
        cpp_extension.CUDA_HOME = toolkit() or cpp_extension.CUDA_HOME
    folder = PLUGINS / "build" / "torch"
    folder.mkdir(parents=True, exist_ok=True)
    # Named here, or TORCH_CUDA_ARCH_LIST, which NVIDIA's images set, adds every other GPU's code.
    gpu = "".join(map(str, torch.cuda.get_device_capability()))
    sources = [
        PLUGINS / "torch" / "binding.cpp",
        PLUGINS / "harness" / "exponentials.cu",
        *sorted((PLUGINS / "kernels").glob("*.cu")),
    ]
    cpp_extension.load(
        name="ckv_kernels",
        sources=[str(source) for source in sources],
        extra_include_paths=[str(PLUGINS / name) for name in ("include", "kernels", "harness")],
        extra_cflags=["-O2"],
        extra_cuda_cflags=["-O3", f"-gencode=arch=compute_{gpu},code=sm_{gpu}"],
        build_directory=str(folder),
        is_python_module=False,
        verbose=verbose,
    )
    return torch.ops.ckv_kernels

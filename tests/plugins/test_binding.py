"""plugins/torch/kernels.py where there is no GPU: what PyTorch is told to compile with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from ckv_testing.scripts import load_script
from torch.utils import cpp_extension

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


def test_kernels_that_cmake_has_built_are_linked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Unless a source is newer; and no build of one library is taken for that of another."""
    kernels = load_script(PLUGINS / "torch" / "kernels.py", monkeypatch)
    source = tmp_path / "kernels" / "one.cu"
    library = tmp_path / "build" / "native" / "libckv_kernels.a"
    for file in (source, library, tmp_path / "include" / "ckv" / "one.h"):
        file.parent.mkdir(parents=True)
        file.write_text("1")
    monkeypatch.setattr(kernels, "PLUGINS", tmp_path)
    monkeypatch.setattr(kernels, "toolkit", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(cpp_extension, "load", lambda **words: told.append(words))

    def loaded(age: float) -> tuple[bool, bool, str]:
        os.utime(library, (source.stat().st_mtime - age,) * 2)
        kernels.load()
        words = told[-1]
        compiled = str(source) in words["sources"]
        return compiled, words["extra_ldflags"] == [str(library)], words["build_directory"]

    compiled, linked, first = loaded(age=-5)
    assert (compiled, linked) == (False, True)
    library.write_text("2")
    assert loaded(age=-5)[2] != first
    compiled, linked, whole = loaded(age=5)
    assert (compiled, linked) == (True, False)
    assert whole not in (first, loaded(age=-5)[2])


@pytest.mark.parametrize(
    ("says", "own", "used"),
    [
        ("#$ _HERE_=/opt/x/bin\n#$ TOP=/opt/x/bin/..\n#$ PATH=/y", {}, "/opt/x"),
        ("nvcc: no such option", {}, "guessed"),
        ("#$ TOP=/opt/x/bin/..", {"CUDA_HOME": "/mine"}, "guessed"),
        ("#$ TOP=/opt/x/bin/..", {"CUDA_PATH": "/mine"}, "guessed"),
    ],
)
def test_the_toolkit_is_the_one_of_nvcc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str, own: dict[str, str], used: str
) -> None:
    """Wherever the program lies that the PATH has, unless the user names a toolkit."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{says}\nEND\n")
    nvcc.chmod(0o755)
    kernels = load_script(PLUGINS / "torch" / "kernels.py", monkeypatch)
    monkeypatch.setattr(kernels, "PLUGINS", tmp_path)
    monkeypatch.setenv("PATH", str(nvcc.parent), prepend=os.pathsep)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    seen = []

    def compile_extension(**_: Any) -> None:
        seen.append(cpp_extension.CUDA_HOME)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", "guessed")
    monkeypatch.setattr(cpp_extension, "load", compile_extension)
    kernels.load()
    assert seen == [used]

"""Entry kernels of plugins/aot as PTX, compiled by nvcc once and kept in a cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ckv_export.engine.plugin_build import default_source
from ckv_export.errors import EngineError

_FOLDERS = ("aot", "kernels", "include")
_CACHE = "CKV_EXPORT_CACHE"


@dataclass(frozen=True)
class Kernel:
    """One entry kernel: its source in plugins/aot, its symbol, the macros it is made with."""

    source: str
    symbol: str
    macros: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Compiler:
    """nvcc for one GPU generation: ``sm90``; its PTX runs there and on later ones.

    `sources`: folder plugins/ of a clone; `cache`: where PTX is kept.
    """

    target: str
    sources: Path
    cache: Path

    @classmethod
    def find(cls, target: str) -> Compiler:
        """What is installed here; raises `EngineError` where nvcc or the sources are missing."""
        sources = default_source()
        if not (sources / "aot").is_dir():
            raise EngineError(
                f"embedding kernels needs their sources, and {sources} has none: install "
                "ckv-export from a clone (pip install -e)"
            )
        if shutil.which("nvcc") is None:
            raise EngineError(
                "embedding kernels needs nvcc, which is not on the PATH: install the CUDA toolkit"
            )
        return cls(target, sources, cache_folder() / "ptx")

    @cached_property
    def sha256(self) -> str:
        """Over the kernels' sources, the compiler's version and the target."""
        digest = hashlib.sha256(f"{self.target}\n{self._version()}".encode())
        files = [f for folder in _FOLDERS for f in sorted((self.sources / folder).rglob("*"))]
        for file in files:
            if file.is_file():
                digest.update(str(file.relative_to(self.sources)).encode() + file.read_bytes())
        return digest.hexdigest()

    def command(self, kernel: Kernel, out: Path) -> list[str]:
        """nvcc's command line."""
        return [
            "nvcc",
            "--ptx",
            "--std=c++17",
            f"--gpu-architecture=compute_{self.target.removeprefix('sm')}",
            "--Werror=all-warnings",
            *(f"-I{self.sources / folder}" for folder in ("", "include", "kernels")),
            *(f"-D{name}={value}" for name, value in kernel.macros),
            str(self.sources / "aot" / kernel.source),
            f"--output-file={out}",
        ]

    def ptx(self, kernel: Kernel) -> str:
        """PTX text of `kernel`; raises `EngineError` with nvcc's first error."""
        key = hashlib.sha256(f"{self.sha256}{kernel}".encode()).hexdigest()
        kept = self.cache / f"{key}.ptx"
        if not kept.is_file():
            self.cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.cache) as scratch:
                made = Path(scratch) / "kernel.ptx"
                _run(self.command(kernel, made))
                made.replace(kept)
        return kept.read_text()

    def _version(self) -> str:
        return _run(["nvcc", "--version"])


def cache_folder() -> Path:
    """Where this program keeps what it can make again: $CKV_EXPORT_CACHE or the user's cache.

    Raises `EngineError` where there is neither.
    """
    if own := os.environ.get(_CACHE):
        return Path(own)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:  # a container's user may have none
        raise EngineError(f"no folder to keep kernels in: set {_CACHE} ({error})") from error
    return Path(base) / "ckv-export"


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).splitlines() or ["no message"]
        error = next((line for line in lines if "error" in line.lower()), lines[-1])
        raise EngineError(f"nvcc failed: {error.strip()}")
    return done.stdout

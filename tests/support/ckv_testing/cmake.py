"""C++ of this repository built once for many sessions.

A build goes to ``build/`` of its sources (git-ignored), into a folder named after a hash of them:
a second run finds it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = {".h", ".cuh", ".cu", ".cpp", ".txt", ".cmake", ".in", ".map"}


@dataclass(frozen=True)
class Sources:
    """A folder with a CMakeLists.txt."""

    folder: Path

    def hash(self) -> str:
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            inside = path.relative_to(self.folder)
            if path.suffix in SOURCES and inside.parts[0] != "build":
                digest.update(str(inside).encode() + path.read_bytes())
        return digest.hexdigest()[:12]

    def build_folder(self, name: str) -> Path:
        return self.folder / "build" / f"pytest-{name}-{self.hash()}"

    def start(
        self, name: str, *options: str, jobs: int = 2, targets: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Configure and build `targets` or everything; nothing to do where that is done already.

        The lock keeps two sessions, or two workers of one, from building into one folder. The
        build waits for it, not the session, and it goes when the build ends, however it ends.
        """
        folder = self.build_folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.parent.glob(f"pytest-{name}-*"):
            if stale != folder:
                shutil.rmtree(stale, ignore_errors=True)
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        configure = ["cmake", "-S", str(self.folder), "-B", str(folder), *generator, *options]
        chosen = " ".join(("--target", *targets)) if targets else ""
        build = f'"$@" && nice cmake --build "$0" --parallel {jobs} {chosen} && touch "$0/done"'
        locked = 'exec 9>"$0/lock" && flock 9 && { [ -e "$0/done" ] || '
        script = f'{locked}{{ exec >"$0/log" 2>&1; {build}; }}; }}'
        return subprocess.Popen(["sh", "-c", script, str(folder), *configure])

    def finish(self, build: subprocess.Popen[bytes], name: str) -> Path:
        """The folder of a build when it is done; fails the test with its log where it isn't."""
        folder = self.build_folder(name)
        if build.wait() != 0:
            log = (folder / "log").read_text()
            pytest.fail(f"the build {name} failed:\n{log[-6000:]}", pytrace=False)
        return folder


@dataclass(frozen=True)
class Build:
    """What `Sources.start` is told."""

    options: Sequence[str] = ()
    targets: Sequence[str] = ()


@dataclass
class Builds:
    """Builds of one folder, by the session fixture that hands each one's folder on.

    They take longer than the tests, so those that a test of the session asks for begin before the
    first one and run beside the others. `missing`: why none can be made here, if so.
    """

    sources: Sources
    builds: Mapping[str, Build]
    missing: Callable[[], str | None]
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def begin(self, session: pytest.Session) -> None:
        """To be called when tests are collected."""
        if session.config.option.collectonly or self.missing() is not None:
            return
        wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
        for name, build in self.builds.items():
            if name in wanted:
                self.started[name] = self.sources.start(
                    name, *build.options, jobs=1, targets=build.targets
                )

    def folder(self, name: str) -> Path:
        """That of a build when it is done; skips where it can't be made."""
        if (reason := self.missing()) is not None:
            pytest.skip(reason)
        return self.sources.finish(self.started[name], name)

    def end(self) -> None:
        """Stop what nobody waits for any more."""
        for build in self.started.values():
            if build.poll() is None:
                build.terminate()


def cuda_headers() -> Path | None:
    """Folder of cuda_runtime_api.h; no part of CUDA but its headers is needed on a CPU."""
    homes = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]
    if (nvcc := shutil.which("nvcc")) is not None:
        homes.append(Path(nvcc).resolve().parents[1])
    folders = [home / "include" for home in homes]
    return next((f for f in folders if (f / "cuda_runtime_api.h").exists()), None)


def rtx_library() -> Path | None:
    """TensorRT for RTX's library, from its Python package."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [path for f in folders for path in Path(f).glob("libtensorrt_rtx.so*")]
    return found[0] if found else None


def registry_option() -> list[str]:
    """A library with TensorRT's registry, to stand in for libnvinfer, where there is one."""
    library = rtx_library()
    return [] if library is None else [f"-DTensorRT_LIBRARY={library}"]


def onnxruntime_option() -> list[str]:
    """ONNX Runtime's library, from its Python package, where there is one.

    Programs look for it under its short name, which the package has not.
    """
    spec = importlib.util.find_spec("onnxruntime")
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [path for f in folders for path in (Path(f) / "capi").glob("libonnxruntime.so.1.*")]
    if not found:
        return []
    folder = ROOT / "engines" / "cpp" / "build" / found[0].name
    return [f"-Donnxruntime_LIBRARY={short_name(found[0], folder)}"]


def short_name(library: Path, folder: Path) -> Path:
    """A link `folder`/libonnxruntime.so.1 to the library."""
    link = folder / "libonnxruntime.so.1"
    if not link.exists():
        folder.mkdir(parents=True, exist_ok=True)
        mine = folder / secrets.token_hex(8)
        mine.symlink_to(library)
        mine.rename(link)
    return link

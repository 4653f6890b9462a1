"""What a result must say of where it came from."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGES = (
    *("ckv-export", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"),
    *("tensorrt", "tensorrt_rtx", "numpy"),
)
_GPU_FIELDS = ("name", "driver_version", "memory.total")
_PROBE_SECONDS = 10


def environment() -> dict[str, object]:
    """Command line, date, commit, machine, GPUs and package versions, as plain JSON data."""
    return {
        "command": command(sys.argv),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "system": platform.platform(),
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load": load(),
        },
        "gpus": gpus(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def command(words: Sequence[str]) -> str:
    """A command line as it would be typed, without the folders of the machine it ran on.

    `words`: the program, of which the name stays, then its arguments. A path given from the root,
    alone or after ``OPTION=``, is given from the working directory where it lies below it, else by
    its name; everything else stays as it is.
    """
    program, *arguments = words
    return shlex.join([Path(program).name, *map(_without_folders, arguments)])


def _without_folders(word: str) -> str:
    option, equals, value = word.partition("=")
    if equals and Path(value).is_absolute() and not Path(option).is_absolute():
        return f"{option}={_from_here(Path(value))}"
    return _from_here(Path(word)) if Path(word).is_absolute() else word


def _from_here(path: Path) -> str:
    try:
        return str(Path(os.path.normpath(path)).relative_to(Path.cwd()))
    except (ValueError, OSError):  # it lies elsewhere, or the working directory is gone
        return path.name or str(path)


def commit() -> str:
    """Commit of the clone this runs from, "+changes" where it differs; "unknown" elsewhere.

    An installed package may lie within someone else's clone, whose commits say nothing of it.
    """
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        head = _git(here.parent, "rev-parse", "HEAD").strip()
        changed = _git(here.parent, "status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed else "")


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)


def cpu_name() -> str:
    """The processor's name as Linux gives it, or whatever the platform says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def load() -> float | None:
    """Processes that ran or waited during the last minute, before the benchmark began."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def gpus() -> list[dict[str, str]]:
    """Name, driver and memory of each NVIDIA GPU; none where nvidia-smi is not there."""
    query = f"--query-gpu={','.join(_GPU_FIELDS)}"
    try:
        text = subprocess.check_output(
            ["nvidia-smi", query, "--format=csv,noheader"], text=True, timeout=_PROBE_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = ([cell.strip() for cell in line.split(",")] for line in text.splitlines())
    return [dict(zip(_GPU_FIELDS, row, strict=False)) for row in rows]


def version(package: str) -> str | None:
    """Installed version, None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def resident_bytes() -> int | None:
    """Resident memory of this process; None where Linux's /proc is not there."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")

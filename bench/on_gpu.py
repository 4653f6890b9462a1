"""Everything that only a GPU can show, in one command; each step rests on those before it.

    python bench/on_gpu.py OUT [--only STEP ...] [--limit SECONDS] [--within SECONDS]

A step that fails or outlasts its limit does not stop the next, nor run on beside it. OUT/STEP.log
is what it printed, of which the end is shown where it failed; OUT/steps.json has exit statuses,
seconds and the machine. Exits 1 where a step failed or was not reached, 2 where there is no GPU.
Needs cmake, ninja, nvcc and a PyTorch for CUDA in the Python that runs it. What needs more is left
out with the reason: plugins without TensorRT's headers (TensorRT_ROOT), engines without tensorrt or
tensorrt_rtx. About a quarter of an hour in all; on a machine lent for ten minutes

    python bench/on_gpu.py OUT --only configure build check random binding time --within 560
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "plugins" / "build" / "native"
HARNESS = NATIVE / "ckv_harness"
ENQUEUE = NATIVE / "tests" / "test_enqueue"

# Seconds in which an interrupted step puts down what it holds.
GRACE = 10
# Of a failed step's log, to be shown: characters.
END = 2000

# Tests of what runs a bundle on a GPU.
RUNNERS = (
    "tests/engine/test_tensorrt_runner.py",
    "tests/runtimes/test_torch_and_onnxruntime.py",
    "tests/cli/test_bench.py",
    "tests/cpp/test_gpu.py",
)

Command = tuple[str | Path, ...]


def needs_nothing() -> str | None:
    return None


def needs_headers() -> str | None:
    """Why the plugins can't be built; CMake has looked for TensorRT's headers by then."""
    cache = NATIVE / "CMakeCache.txt"
    found = cache.is_file() and "TensorRT_INCLUDE_DIR:PATH=/" in cache.read_text()
    return None if found else "TensorRT's headers are not here: set TensorRT_ROOT"


def needs_engines() -> str | None:
    modules = ("tensorrt", "tensorrt_rtx")
    found = any(importlib.util.find_spec(name) is not None for name in modules)
    return None if found else "neither tensorrt nor tensorrt_rtx is installed"


def needs_sanitizer() -> str | None:
    return None if shutil.which("compute-sanitizer") else "compute-sanitizer is not installed"


@dataclass(frozen=True)
class Step:
    """A command from the repository's root, and why it can't run here if it can't."""

    name: str
    command: Command
    why_not: Callable[[], str | None] = needs_nothing


def sanitized(tool: str) -> Step:
    words = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "1")
    return Step(tool, (*words, HARNESS, "quick"), needs_sanitizer)


def steps(out: Path, seed: int) -> list[Step]:
    """All of them, in order."""
    # A module that needs what is not installed here does not keep the others from being run.
    only = ("-rs", "-m", "gpu", "--continue-on-collection-errors")
    tests = (sys.executable, "-m", "pytest", *only)
    build = ("cmake", "--build", NATIVE, "--parallel", "--target")
    export = (sys.executable, "-m", "ckv_export")
    bundle = out / "engines" / "demo-sim"
    cost = ("--checkpoint", out / "engines" / "demo-checkpoints" / "sim" / "demo-sim.pt")
    return [
        Step("configure", ("cmake", "-S", "plugins", "--preset", "native")),
        Step("build", (*build, "ckv_harness")),
        Step("check", (HARNESS, "check", str(seed))),
        Step("random", (HARNESS, "random", str(seed), "200")),
        Step("build-plugins", (*build, "test_enqueue"), needs_headers),
        Step("enqueue", (ENQUEUE, str(seed)), needs_headers),
        Step("binding", (*tests, "tests/plugins/test_gpu.py")),
        Step("time", (sys.executable, "bench/bench_kernel.py", "--out", out / "kernel.json")),
        *map(sanitized, ("memcheck", "racecheck", "initcheck", "synccheck")),
        Step("runners", (*tests, *RUNNERS)),
        Step("engines", (*export, "demo", "--out", out / "engines"), needs_engines),
        Step("parity", (*export, "parity", bundle, "--json", out / "parity.json"), needs_engines),
        Step("cost", (*export, "bench", bundle, *cost, "--json", out / "cost.json"), needs_engines),
    ]


def run(step: Step, log: Path, limit: float) -> dict[str, Any]:
    """{"skipped": why}, or a step's exit status (None: it ran out of time) and seconds."""
    if (reason := step.why_not()) is not None:
        return {"skipped": reason}
    command = [str(word) for word in step.command]
    began = time.monotonic()
    with log.open("w") as printed:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=printed,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            status = ended(process, limit)
        except OSError as error:
            printed.write(f"{command[0]}: {error.strerror}\n")
            status = 127
    return {"command": command, "status": status, "seconds": round(time.monotonic() - began, 1)}


def environment() -> dict[str, str]:
    """This process's, with the repository's modules and the programs of its own Python."""
    first = {"PYTHONPATH": ROOT, "PATH": Path(sys.executable).parent}
    paths = {
        name: os.pathsep.join(filter(None, [str(path), os.environ.get(name)]))
        for name, path in first.items()
    }
    # PyTorch's extensions need ninja in any case; make may not be here.
    return {"CMAKE_GENERATOR": "Ninja"} | os.environ | paths | {"PYTHONUNBUFFERED": "1"}


def ended(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """Its exit status, or None where it ran out of time; nothing that it started goes on.

    Interrupted first: a build that is killed leaves a lock for which the next one would wait.
    """
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def passed(result: Mapping[str, Any]) -> bool:
    return "skipped" in result or result.get("status") == 0


def told(result: Mapping[str, Any]) -> str:
    """A step's result in a few words."""
    if "skipped" in result:
        return f"left out: {result['skipped']}"
    if "not_reached" in result:
        return "not reached"
    status = result["status"]
    how = "ok" if status == 0 else "out of time" if status is None else f"FAILED ({status})"
    return f"{how}, {result['seconds']} s"


def end_of(log: Path) -> str:
    """Its last lines, indented; empty where nothing was written."""
    text = log.read_text(errors="replace")[-END:] if log.is_file() else ""
    return "".join(f"    {line}\n" for line in text.splitlines())


def printed_by(*command: str) -> str:
    """What a program that tells of this machine prints; empty where there is none."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def facts() -> dict[str, str]:
    query = "--query-gpu=name,driver_version,compute_cap,memory.total"
    return {
        "gpu": printed_by("nvidia-smi", query, "--format=csv,noheader"),
        "nvcc": printed_by("nvcc", "--version").rpartition("\n")[2],
        "commit": printed_by("git", "rev-parse", "HEAD"),
        "changed": printed_by("git", "status", "--short"),
        "python": sys.version.split()[0],
        "packages": printed_by(sys.executable, "-m", "pip", "list", "--format=freeze"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder for logs and results")
    names = [step.name for step in steps(Path(), 0)]
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", default=names,
                        help="one or more of: " + ", ".join(names))  # fmt: skip
    parser.add_argument("--limit", type=float, default=300, help="seconds a step may take")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the random inputs")
    parser.add_argument("--within", type=float, default=float("inf"), metavar="SECONDS",
                        help="end by then, whatever is left")  # fmt: skip
    options = parser.parse_args()
    end = time.monotonic() + options.within
    # A shell's background jobs begin deaf to it, and so would the steps. Told to end, it ends them.
    for told_to in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told_to, signal.default_int_handler)
    machine = facts()
    if not machine["gpu"]:
        print("on_gpu: no NVIDIA GPU answers here (nvidia-smi)", file=sys.stderr)
        return 2
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for step in steps(out, options.seed):
        if step.name in options.only:
            log = out / f"{step.name}.log"
            limit = min(options.limit, end - time.monotonic() - GRACE)
            result = run(step, log, limit) if limit > 0 else {"not_reached": True}
            results[step.name] = result
            print(f"{step.name}: {told(result)}", flush=True)
            if result.get("status", 0) != 0:
                print(end_of(log), end="", flush=True)
            whole = {"schema_version": 1, "seed": options.seed, **machine, "steps": results}
            (out / "steps.json").write_text(json.dumps(whole, indent=1) + "\n")
    return 0 if all(map(passed, results.values())) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Runs ckv-export commands in processes of their own, for tests of signals and exit codes.

PyTorch is imported once, then every command is a fork. (ONNX Runtime is not: it starts a thread,
for which a forked process waits in vain at its end.) One JSON object a line comes in, with
``args`` and ``out``, ``err`` (files or devices of the command's two streams), and maybe:
``graphs``, a bundle whose ONNX files are taken instead of being exported again; ``hold``, the title
of a stage that says so and then lasts; ``file_limit``, the most bytes a file may get. A line goes
out when the command started, its process id, and one when it ended, its exit status.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import onnx_ir as ir
import onnxscript  # noqa: F401

from ckv_export.cli import build, export, inspect, main, parity  # noqa: F401
from ckv_export.deploy import bundle
from ckv_export.stages import Stage, Stages

HELD = "<held>"


def take_graphs(folder: str) -> None:
    bundle.export_graph = lambda graph: ir.load(Path(folder) / f"{graph.io.name}.onnx")


def hold(title: str) -> None:
    real = Stages.stage

    @contextlib.contextmanager
    def stage(self: Stages, name: str) -> Iterator[Stage]:
        with real(self, name) as running:
            if name == title:
                print(HELD, flush=True)
                # In short sleeps: of two signals at once, another thread may take both, and then
                # nothing wakes this one.
                for _ in range(12000):
                    time.sleep(0.01)
            yield running

    Stages.stage = stage


def run(request: dict) -> None:
    """Become the command."""
    for number, stream in ((1, "out"), (2, "err")):
        opened = os.open(request[stream], os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", 1, closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "graphs" in request:
        take_graphs(request["graphs"])
    if "hold" in request:
        hold(request["hold"])
    if "file_limit" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
    sys.argv[1:] = request["args"]
    end(main.main())


def end(code: int) -> NoReturn:
    """Exit without taking PyTorch apart, which lasts longer than most commands here."""
    try:
        sys.stdout.flush()
    except OSError:
        code = 120  # as Python does at its own end
    os._exit(code)


def serve() -> None:
    answers = os.dup(1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.close(answers)
            run(json.loads(line))
        os.write(answers, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    serve()

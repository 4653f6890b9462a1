"""Ways to run a decode graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ckv_export.contract import GraphSpec
from ckv_export.runtimes.base import Arrays
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner

Decode = Callable[[Arrays], Arrays]
"""Inputs of decode for B users -> its outputs, by name. An item table is the function's own."""


def in_process(
    path: Path, io: GraphSpec, table: Arrays | None = None, threads: int | None = 1
) -> Decode:
    """Decode by ONNX Runtime in this process, on the CPU.

    `table`: the ``item_*`` inputs, where the graph at `path` takes an item table. Raises
    `MissingDependency` or `ExportError`.
    """
    runner = OnnxRuntimeRunner(path, io, threads=threads)
    runner.activate()
    return lambda feeds: runner.infer(feeds | (table or {}))

"""Every error that ckv-export raises on purpose.

::

    CkvError                    exit code 2
    |-- InputError              something the user gave
    |   |-- CheckpointError     a model file or run folder
    |   |-- SpecError           a model configuration
    |   |-- BundleError         an exported bundle
    |   |-- EventsError         a file of events
    |   `-- RecordError         a user's cache record, or what should go into one
    |-- MissingDependency       an optional package that is not installed
    |-- ExportError             PyTorch or ONNX refused the graph
    |-- EngineError             TensorRT refused the graph or the settings
    |-- StoreError              a store of user records can't be reached, or is damaged
    |-- Interrupted             Ctrl-C or SIGTERM
    `-- ParityFailure           exit code 1: the numbers differ

A message is one sentence for the reader: what is wrong, what was got, what is
allowed, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CkvError(Exception):
    """Root of the tree; the command line prints it and exits with `exit_code`."""

    exit_code = 2


class InputError(CkvError):
    """Something the user gave can't be used."""


class CheckpointError(InputError):
    """A checkpoint can't be read or doesn't fit its own description."""


class SpecError(InputError):
    """A model configuration contradicts itself or names something unknown."""


class BundleError(InputError):
    """A bundle is missing, damaged, or already there."""


class EventsError(InputError):
    """A file of events doesn't fit the model."""


class RecordError(InputError):
    """A user's cache record is damaged or another model's, or can't hold what it is given."""


class MissingDependency(CkvError):
    """An optional package is needed and absent."""

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f"run pip install 'ckv-export[{extra}]'"
        )


class ExportError(CkvError):
    """PyTorch, ONNX or ONNX Runtime refused a graph."""


class EngineError(CkvError):
    """TensorRT refused a graph, a profile or a target."""


class StoreError(CkvError):
    """A store of user records can't be reached, is busy, or holds what is no record."""


class Interrupted(CkvError):
    """The user or the system stopped the run."""


class ParityFailure(CkvError):
    """The exported graphs don't compute what the model computes."""

    exit_code = 1


def reason(error: Exception) -> str:
    """What `error` says, of a file in words alone: the sentence around it names the path."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file or folder"
    words = error.strerror if isinstance(error, OSError) else None
    return words or str(error)


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the candidate most like `name`, else ``""``."""
    match = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""

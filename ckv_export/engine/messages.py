"""What the library says while it parses, builds and runs: kept instead of printed.

A TensorRT module has one logger for the whole process. The first one registered wins and
may be called until the process ends, so it is created once and never freed; whoever wants
to hear it listens for a while. Two blocks that listen at the same time both hear everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ckv_export.engine.backends import Backend

_loggers: dict[str, Any] = {}

# Said after the real error, because handling that looked for a GPU; explains nothing.
_NOISE = re.compile(r"catchCudaError|logger passed into")
_ERROR_CODE = re.compile(r"^.*?Error Code \d+: [^(]*\((.*)\)\s*$")
_SOURCE_PLACE = re.compile(r"^(?:\[[\w./]+\.(?:cpp|h)[^\]]*\]|\w+\.[ch]pp:\d+:)\s*")
_RAISED_IN = re.compile(r"\s*\bIn \w+ at \S+:\d+(?=\s|$)")


@dataclass(eq=False)
class Messages:
    """Errors and warnings heard while listening, in order, worded by the library."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def first_error(self) -> str | None:
        """Return the first error that explains something, as a clause; None without one."""
        told = (readable(text) for text in self.errors if not _NOISE.search(text))
        return next((clause for clause in told if clause), None)


@contextmanager
def listen(backend: Backend) -> Iterator[tuple[Any, Messages]]:
    """Yield the backend's logger and the `Messages` that it fills until the block ends."""
    logger, messages = _logger(backend), Messages()
    logger.listeners.append(messages)
    try:
        yield logger, messages
    finally:
        logger.listeners.remove(messages)


def readable(text: str) -> str:
    """Return the clause inside a library message: no error code, no source file, one line.

    >>> readable("IBuilder::build: Error Code 4: API Usage Error (x is odd. In go at /a.cpp:3)")
    'x is odd.'
    """
    line = " ".join(text.split())
    inner = _ERROR_CODE.match(line)
    clause = _SOURCE_PLACE.sub("", inner[1] if inner else line)
    return _RAISED_IN.sub("", clause).strip()


def _logger(backend: Backend) -> Any:
    if backend.name not in _loggers:
        _loggers[backend.name] = _make_logger(backend.module)
    return _loggers[backend.name]


def _make_logger(module: Any) -> Any:
    severity = module.ILogger.Severity

    class Logger(module.ILogger):  # type: ignore[misc]  # the base is known only at run time
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.listeners: list[Messages] = []

        def log(self, level: Any, text: str) -> None:
            # Called from the library's threads: appending to a list needs no lock.
            for messages in tuple(self.listeners):
                if level in (severity.INTERNAL_ERROR, severity.ERROR):
                    messages.errors.append(text)
                elif level == severity.WARNING:
                    messages.warnings.append(text)

    return Logger()

"""Library messages become sentences."""

from __future__ import annotations

import enum
from types import SimpleNamespace

import pytest

from ckv_export.engine import Backend, messages
from ckv_export.engine.messages import Messages, listen, readable

Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

NO_DRIVER = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at "
    "/_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: no driver))"
)


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] Cannot "
            "compile operation 'mm' for Turing (SM75): FP32 GEMM is not supported. In "
            "compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)",
            "Cannot compile operation 'mm' for Turing (SM75): FP32 GEMM is not supported.",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Dynamic input tensor "
            "x is missing dimensions in profile 0. In validate at /_src/network.cpp:4046)",
            "Dynamic input tensor x is missing dimensions in profile 0.",
        ),
        ("WeightsContext.cpp:203: Failed to open file: /w.bin", "Failed to open file: /w.bin"),
        ("Unused Input: event_mask", "Unused Input: event_mask"),
        ("two\nlines (kept)", "two lines (kept)"),
        ("", ""),
    ],
)
def test_readable(text: str, clause: str) -> None:
    assert readable(text) == clause


def test_first_error_skips_what_explains_nothing() -> None:
    assert Messages(errors=[NO_DRIVER, "x is odd"]).first_error() == "x is odd"
    other = "The logger passed into createInferBuilder differs from one registered before"
    assert Messages(errors=[other, "", "x is odd"]).first_error() == "x is odd"
    assert Messages(errors=[NO_DRIVER]).first_error() is None
    assert Messages().first_error() is None


def test_who_listens_hears_until_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """And all who listen at the same time hear the one logger of the process."""
    monkeypatch.setattr(messages, "_loggers", {})
    base = type("ILogger", (), {"Severity": Severity, "__init__": lambda self: None})
    backend = Backend("tensorrt", SimpleNamespace(ILogger=base), "11")  # type: ignore[arg-type]
    with listen(backend) as (logger, outer):
        with listen(backend) as (same, inner):
            assert same is logger
            for level in Severity:
                logger.log(level, level.name)
        logger.log(Severity.ERROR, "later")
    logger.log(Severity.ERROR, "when nobody listens")
    assert (inner.errors, inner.warnings) == (["INTERNAL_ERROR", "ERROR"], ["WARNING"])
    assert (outer.errors, outer.warnings) == ([*inner.errors, "later"], ["WARNING"])

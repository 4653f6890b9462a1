"""Library messages become sentences."""

from __future__ import annotations

import pytest

from ckv_export.engine.messages import Messages, readable

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
    assert Messages(errors=[NO_DRIVER]).first_error() is None
    assert Messages().first_error() is None

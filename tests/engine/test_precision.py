"""An engine in another precision than its graph is no engine of it."""

from __future__ import annotations

import pytest

from ckv_export.engine.layers import ENGINE, NETWORK, Layer, LayerReport
from ckv_export.engine.precision import require_precision
from ckv_export.errors import EngineError


def report(source: str, **parts: str) -> LayerReport:
    layers = (
        Layer(f"{part}_{i}", "ElementWise", (f"{part}/Mul_{i}",), (precision,))
        for part, precisions in parts.items()
        for i, precision in enumerate(precisions.split())
    )
    return LayerReport(source, tuple(layers))


@pytest.mark.parametrize("source", [NETWORK, ENGINE])
def test_what_was_asked_for_passes(source: str):
    require_precision(report(source, router="fp32", dnn="fp16 fp32"), "fp16", True, "decode")
    require_precision(report(source, router="fp32"), "bf16", False, "prefill")
    require_precision(report(source, router="fp32 fp32"), "fp32", True, "decode")


@pytest.mark.parametrize("source", [NETWORK, ENGINE])
@pytest.mark.parametrize(("asked", "both"), [("fp32", "fp32"), ("bf16", "bf16 and fp32")])
def test_another_precision_is_named_with_its_parts(source: str, asked: str, both: str):
    found = report(source, router="fp32 fp16", dnn="fp16", query=asked)
    sentence = f"decode was to compute in {both}, and computes in fp16 in dnn, router: "
    with pytest.raises(EngineError, match=sentence):
        require_precision(found, asked, True, "decode")


def test_nothing_reduced_is_told_only_where_every_type_shows():
    with pytest.raises(EngineError, match="fp16 and fp32, and all its layers are fp32"):
        require_precision(report(NETWORK, dnn="fp32"), "fp16", True, "decode")
    require_precision(report(ENGINE, dnn="fp32"), "fp16", True, "decode")

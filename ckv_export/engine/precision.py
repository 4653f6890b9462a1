"""Whether an engine computes in the precision of the graph it was built from."""

from __future__ import annotations

from ckv_export.engine.layers import NETWORK, LayerReport
from ckv_export.errors import EngineError

FP32 = "fp32"


def require_precision(report: LayerReport, asked: str, reduced: bool, engine: str) -> None:
    """Raise `EngineError` for an engine in another precision than `asked`.

    `reduced`: whether its graph has anything to reduce. fp32 is found in every engine: what routes,
    selects or is cached. A built engine shows only the types between its fused layers, so there
    nothing is made of one that is missing.
    """
    parts = report.parts
    found = {precision for counts in parts.values() for precision in counts}
    others = found - {FP32, asked}
    if others:
        where = sorted(part for part, counts in parts.items() if counts.keys() & others)
        raise EngineError(
            f"{engine} was to compute in {_both(asked)}, and computes in "
            f"{', '.join(sorted(others))} in {', '.join(where)}: the library has changed the "
            "graph's types, so the engine isn't used"
        )
    if reduced and asked not in found and report.source == NETWORK:
        raise EngineError(
            f"{engine} was to compute in {_both(asked)}, and all its layers are fp32: the library "
            "has changed the graph's types, so the engine isn't used"
        )


def _both(asked: str) -> str:
    return FP32 if asked == FP32 else f"{asked} and {FP32}"

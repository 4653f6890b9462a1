"""What is to be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckv_export.bench.measure import Settings
from ckv_export.bench.ways import PHASES
from ckv_export.bench.workload import Sizes
from ckv_export.errors import InputError

SOURCES = ("memory", "file", "pinned")
RATE_SECONDS = 5.0
SWEPT = ("history", "candidates", "batch", "appended")


@dataclass(frozen=True)
class BenchRequest:
    """What to measure.

    `checkpoint`: the model the bundle was made from, None to leave out what needs its weights;
    `floats`: how floating-point parts are stored; `source`: one of `SOURCES`; `bound`: seconds
    that p99 may take in a search for the highest rate, None for no search; `traffic`: how many
    requests of drawn lengths, 0 for none; `sweep`: sizes of one axis at a time; `only`: ways whose
    name holds this text, of which there must be one, and always the first; `beside`: other bundles
    of the same model, whose ways join. Raises `InputError` for a size of the sweep that no request
    can have.
    """

    bundle: Path
    sizes: Sizes
    checkpoint: Path | None = None
    weights: str | None = None
    params: str | None = None
    threads: int = 1
    settings: Settings = field(default_factory=Settings)
    phases: Sequence[str] = PHASES
    bound: float | None = None
    rate_seconds: float = RATE_SECONDS
    traffic: int = 0
    sweep: Mapping[str, Sequence[int]] = field(default_factory=dict)
    source: str = "memory"
    floats: str = "fp32"
    seed: int = 0
    only: str = ""
    beside: Sequence[Path] = ()

    def __post_init__(self) -> None:
        for axis, values in self.sweep.items():
            for value in values:
                self.sizes.replaced(**{axis: value})


def parse_sweep(texts: Sequence[str]) -> dict[str, list[int]]:
    """Read ``history=10,100``; raises `InputError` for another axis or what is no number.

    An axis given twice is swept over the sizes of both.
    """
    sweep: dict[str, list[int]] = {}
    for text in texts:
        axis, _, values = text.partition("=")
        parts = values.split(",")
        if axis not in SWEPT or not all(p.isdecimal() for p in parts):
            raise InputError(
                f"a sweep is written AXIS=N,N,... with an axis of {', '.join(SWEPT)}, got {text!r}"
            )
        sweep.setdefault(axis, []).extend(int(p) for p in parts)
    return sweep

"""The cache report: bytes per user, and where events were at hand, pool use and spectra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ckv_export.cache.occupancy import PoolOccupancy
from ckv_export.cache.sizes import CacheSizes
from ckv_export.cache.spectrum import Spectrum

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class CacheReport:
    """Everything ``ckv-export inspect`` says about a model's cache.

    `sizes` follows from the model alone. `occupancy` and `spectrum` hold one entry per layer
    and shared side (per layer and side) and were measured on `events`, a description such
    as ``"file clicks.npz"`` or ``"generated, seed 0"``; None where nothing was measured.
    """

    sizes: CacheSizes
    occupancy: tuple[PoolOccupancy, ...] | None = None
    spectrum: tuple[Spectrum, ...] | None = None
    events: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data under ``schema_version`` 1: no NaN, tuple or numpy type."""
        data = {
            "schema_version": SCHEMA_VERSION,
            "events": self.events,
            "sizes": self.sizes.to_dict(),
            "occupancy": self.occupancy and [use.to_dict() for use in self.occupancy],
            "spectrum": self.spectrum and [s.to_dict() for s in self.spectrum],
        }
        return {name: _plain(value) for name, value in data.items()}


def _plain(value: Any) -> Any:
    """Tuples as lists, so that the data equals what JSON reads back."""
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value

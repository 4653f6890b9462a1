"""What a user's cache costs and holds: sizes, pool occupancy, spectra, and their report."""

from ckv_export.cache.occupancy import (
    PoolOccupancy,
    occupancy_of_counts,
    pool_occupancy,
    row_counts,
)
from ckv_export.cache.plot import check_plot, plot_report
from ckv_export.cache.report import CacheReport
from ckv_export.cache.sizes import CacheSizes, cache_sizes
from ckv_export.cache.spectrum import Spectrum, SpectrumStream, kv_spectrum

__all__ = [
    "CacheReport",
    "CacheSizes",
    "PoolOccupancy",
    "Spectrum",
    "SpectrumStream",
    "cache_sizes",
    "check_plot",
    "kv_spectrum",
    "occupancy_of_counts",
    "plot_report",
    "pool_occupancy",
    "row_counts",
]

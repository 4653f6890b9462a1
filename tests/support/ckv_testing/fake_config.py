"""A stand-in for what TensorRT is told of a build: profiles, flags, limits, a timing cache."""

from __future__ import annotations

from typing import Any


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shapes[name] = shapes


class TimingCache:
    """A cache of this version and GPU begins with a header that says so."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        known = self.data.splitlines(keepends=True)
        self.data += b"".join(x for x in other.data.splitlines(keepends=True) if x not in known)
        return True


HEADER = b"timings of 11.4.0 on sm90\n"


class Config:
    def __init__(self, module: Any) -> None:
        self.module = module
        self.flags: set[Any] = {module.BuilderFlag.TF32}
        self.profiles: list[Profile] = []
        self.limits: dict[Any, int] = {}
        self.cache: TimingCache | None = None
        self.plugins_to_serialize: list[str] = []
        self.profiling_verbosity = module.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = module.HardwareCompatibilityLevel.NONE

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.limits[pool] = size

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> TimingCache | None:
        # Bytes that are no cache at all give none.
        return TimingCache(data or HEADER) if not data or data.startswith(b"timings") else None

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        fits = ignore_mismatch or cache.data.startswith(HEADER)
        self.cache = cache if fits else None
        return fits

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache

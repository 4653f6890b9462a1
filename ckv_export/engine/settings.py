"""How to build, beyond shapes and targets: plugin, compatibility, timing cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckv_export.engine import timing_cache
from ckv_export.engine.backends import TENSORRT, Backend
from ckv_export.engine.plugins import NATIVE_LAYERS, PluginChoice, require_plugins
from ckv_export.errors import EngineError

_WHY_NOT_RTX = {
    "version_compatible": "its engines run with the TensorRT for RTX that built them, only",
    "hardware_compatible": "name the GPU generations as targets instead",
    "timing_cache": "it measures nothing while it builds, so there is nothing to keep",
}


@dataclass(frozen=True)
class Settings:
    """Settings of a build that only the full TensorRT has; the defaults ask for none of them.

    `version_compatible`: the engine runs with later versions of TensorRT too, and carries a plugin
    library inside; `hardware_compatible`: it runs on every GPU from Ampere on, somewhat slower;
    `timing_cache`: file of kernel timings, read and updated.
    """

    plugin: PluginChoice = NATIVE_LAYERS
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None

    def require_supported(self, backend: Backend) -> None:
        """Raise `EngineError` where TensorRT for RTX is asked for what it does not have."""
        require_plugins(self.plugin, backend)
        asked = [name for name in _WHY_NOT_RTX if getattr(self, name)]
        if backend.is_rtx and asked:
            flag = asked[0].replace("_", "-")
            raise EngineError(
                f"{backend.label} has no --{flag}: {_WHY_NOT_RTX[asked[0]]} (or use "
                f"--backend {TENSORRT})"
            )

    def code_targets(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        """GPU generations that a plugin's code must run on, for an engine built for `targets`."""
        return ("sm80",) if self.hardware_compatible else targets

    def recorded(self) -> Mapping[str, Any]:
        """What of the settings an engine's record names: only what was asked for."""
        flags = {
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
        }
        return {name: value for name, value in flags.items() if value}


DEFAULT = Settings()


def apply_settings(settings: Settings, backend: Backend, config: Any) -> None:
    """Write the settings into a builder configuration; raises `EngineError` for a timing cache."""
    module = backend.module
    # Else the engine's inspector knows layer names alone, and no types.
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if settings.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatible:
        level = module.HardwareCompatibilityLevel.AMPERE_PLUS
        config.hardware_compatibility_level = level
    if settings.timing_cache is not None:
        timing_cache.attach(settings.timing_cache, config, backend)

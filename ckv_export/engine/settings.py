"""How to build, beyond shapes and targets: plugin, compatibility, refit, timing cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckv_export.engine import targets, timing_cache
from ckv_export.engine.backends import TENSORRT, Backend
from ckv_export.engine.plugins import NATIVE_LAYERS, PluginChoice, require_plugins
from ckv_export.errors import EngineError

_WHY_NOT_RTX = {
    "version_compatible": "its engines run with the TensorRT for RTX that built them, only",
    "hardware_compatible": "name the GPU generations as targets instead",
    "timing_cache": "it measures nothing while it builds, so there is nothing to keep",
}

BUILD_FLAGS = ("version_compatible", "hardware_compatible")
"""Settings that are flags of ``ckv-export build``; `refit` comes from the bundle's export."""

REFIT_FLAG = "REFIT_INDIVIDUAL"


@dataclass(frozen=True)
class Settings:
    """Settings of a build that most machines don't have; the defaults ask for none of them.

    `version_compatible`: the engine runs with later versions of TensorRT too, and carries a plugin
    library inside; `hardware_compatible`: it runs on every GPU from Ampere on, somewhat slower;
    `timing_cache`: file of kernel timings, read and updated; `refit`: the engine can exchange its
    learned weights. Only `refit` is for TensorRT for RTX too, where it needs a GPU.
    """

    plugin: PluginChoice = NATIVE_LAYERS
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None
    refit: bool = False

    def require_supported(self, backend: Backend) -> None:
        """Raise `EngineError` for what `backend` does not have, here or at all.

        Also for a timing cache that could not be written.
        """
        require_plugins(self.plugin, backend)
        asked = [name for name in _WHY_NOT_RTX if getattr(self, name)]
        if backend.is_rtx and asked:
            flag = asked[0].replace("_", "-")
            raise EngineError(
                f"{backend.label} has no --{flag}: {_WHY_NOT_RTX[asked[0]]} (or use "
                f"--backend {TENSORRT})"
            )
        if self.timing_cache is not None:
            timing_cache.require_place(self.timing_cache)
        if self.refit:
            self._require_refit(backend)

    def _require_refit(self, backend: Backend) -> None:
        if self.version_compatible:
            raise EngineError(
                "--version-compatible and --pool refit don't go together: such an engine runs in "
                "the lean runtime that it carries, and not every version of that can refit it; "
                "build without it, or export with --pool input"
            )
        if backend.is_rtx and targets.present_gpu() is None:
            raise EngineError(
                f"{backend.label} builds an engine that can be refitted only on a machine with a "
                "GPU, and there is none here that torch can use: run ckv-export build on the GPU "
                "machine, or export with --pool input"
            )
        if not hasattr(backend.module.BuilderFlag, REFIT_FLAG):
            raise EngineError(
                f"{backend.label} can't choose the weights that an engine exchanges: update it, or "
                "export with --pool input"
            )

    def code_targets(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        """GPU generations that a plugin's code must run on, for an engine built for `targets`."""
        return ("sm80",) if self.hardware_compatible else targets

    def recorded(self) -> Mapping[str, Any]:
        """What of the settings an engine's record names: only what was asked for."""
        flags = {name: getattr(self, name) for name in (*BUILD_FLAGS, "refit")}
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
    if settings.refit:
        config.set_flag(getattr(module.BuilderFlag, REFIT_FLAG))
    if settings.timing_cache is not None:
        timing_cache.attach(settings.timing_cache, config, backend)

"""The two modules that can build an engine, found and loaded by name.

``tensorrt`` is the full TensorRT: it builds on the GPU that will run the engine.
``tensorrt_rtx`` is TensorRT for RTX: it builds ahead of time, without a GPU, for several
GPU generations at once. Both speak the same Python API, so everything after this module
takes a `Backend` and never asks which one it is, except where the two really differ.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from types import ModuleType

from ckv_export.errors import EngineError, MissingDependency, nearest

TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt_rtx"
EXTRAS = {TENSORRT: "gpu", TENSORRT_RTX: "rtx"}
"""Backend name -> extra of this package that installs it; in order of preference."""

OLDEST_TENSORRT = 10


@dataclass(frozen=True)
class Backend:
    """One importable TensorRT: its name, its module and the module's version."""

    name: str
    module: ModuleType
    version: str

    @property
    def is_rtx(self) -> bool:
        """Whether it builds ahead of time for GPUs that need not be here."""
        return self.name == TENSORRT_RTX

    @property
    def label(self) -> str:
        """Name for a sentence: ``TensorRT for RTX 1.7.1``."""
        return f"{'TensorRT for RTX' if self.is_rtx else 'TensorRT'} {self.version}"


def available() -> dict[str, str]:
    """Version of each installed backend by name; never raises and loads no library."""
    versions = {name: installed_version(name) for name in EXTRAS}
    return {name: version for name, version in versions.items() if version is not None}


def installed_version(name: str) -> str | None:
    """Version of the installed package `name`, ``"unknown"`` without metadata, None if absent."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    # A mere folder of that name on the path is a namespace package: it has no origin.
    if spec is None or spec.origin is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def load(name: str | None = None) -> Backend:
    """Import the backend `name`; None takes ``tensorrt`` if it loads, else ``tensorrt_rtx``.

    Raises `EngineError` for a name that is no backend, a module that is installed but
    can't be loaded, or a TensorRT older than 10; `MissingDependency` when it is absent.
    """
    if name is None:
        return _load_preferred()
    if name not in EXTRAS:
        raise EngineError(
            f"a backend must be one of {', '.join(EXTRAS)}, got {name!r}{nearest(name, EXTRAS)}"
        )
    if installed_version(name) is None:
        raise MissingDependency(name, f"building or running an engine with {name}", EXTRAS[name])
    return _supported(Backend(name, *_import(name)))


def _load_preferred() -> Backend:
    installed = list(available())
    if not installed:
        raise MissingDependency(
            TENSORRT_RTX, "building an engine without a GPU", EXTRAS[TENSORRT_RTX]
        )
    for name in installed[:-1]:
        # A full TensorRT that doesn't load (no CUDA here) must not hide a working RTX.
        try:
            return load(name)
        except EngineError:
            continue
    return load(installed[-1])


def _import(name: str) -> tuple[ModuleType, str]:
    try:
        module = importlib.import_module(name)
        return module, str(module.__version__)
    except (ImportError, OSError, AttributeError) as error:
        raise EngineError(
            f"the module {name!r} is installed but can't be loaded: {error}"
        ) from error


def _supported(backend: Backend) -> Backend:
    if not backend.is_rtx and int(backend.version.split(".")[0]) < OLDEST_TENSORRT:
        raise EngineError(
            f"{backend.label} is too old: install TensorRT {OLDEST_TENSORRT} or later "
            f"(pip install 'ckv-export[{EXTRAS[TENSORRT]}]')"
        )
    return backend

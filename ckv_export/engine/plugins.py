"""Who computes the pool step: native layers, a plugin library, or kernels inside the engine.

A node of domain ``ckv`` is a function of standard operators and carries the attributes
``plugin_namespace`` and ``plugin_version``. The ONNX parser takes a plugin where one of that
name is registered in the process, and the function otherwise. So the choice is made before
parsing, by what is registered, and checked after building (`pool_steps`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckv_export.engine import aot_plugin, plugin_library
from ckv_export.engine.aot_kernels import Compiler
from ckv_export.engine.backends import TENSORRT, Backend
from ckv_export.engine.plugin_build import OPERATOR_VERSION
from ckv_export.errors import EngineError, nearest

NONE = "none"
LIBRARY = "library"
EMBEDDED = "embedded"
KINDS = (LIBRARY, EMBEDDED, NONE)

NAMESPACE = "ckv"


@dataclass(frozen=True)
class PluginChoice:
    """What a build asks for: one of `KINDS`, and with ``library`` the library's file or folder."""

    kind: str = NONE
    library: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise EngineError(
                f"the plugin must be one of {', '.join(KINDS)}, got {self.kind!r}"
                f"{nearest(self.kind, KINDS)}"
            )
        if self.kind == LIBRARY and self.library is None:
            raise EngineError(
                "the plugin library needs its file: give --plugin-library PATH, what "
                "`ckv-export plugin build` wrote"
            )
        if self.kind != LIBRARY and self.library is not None:
            raise EngineError(
                f"--plugin-library is for --plugin {LIBRARY}, got --plugin {self.kind}"
            )

    @classmethod
    def of(cls, kind: str | None, library: Path | None) -> PluginChoice:
        """The choice that the command line's options mean: a library given is asked for."""
        return cls(kind or (LIBRARY if library else NONE), library)


NATIVE_LAYERS = PluginChoice()


@dataclass(frozen=True)
class PluginRecord:
    """The plugin in an engine.

    `sha256`: of the library, or of the embedded kernels' sources with their compiler's version;
    `tensorrt`: the version that it was built for; `targets`: GPU generations its code is for;
    `carried`: whether the engine holds it and needs no library; `source`: the library's file, None
    for embedded kernels.
    """

    kind: str
    sha256: str
    operator_version: str
    tensorrt: str
    targets: tuple[str, ...]
    carried: bool
    source: Path | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PluginRecord:
        """Read `to_dict` data."""
        return cls(**{**data, "targets": tuple(data["targets"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, without the place of the library."""
        data = dataclasses.asdict(self) | {"targets": list(self.targets)}
        del data["source"]
        return data


def prepare(
    choice: PluginChoice, backend: Backend, targets: tuple[str, ...], carried: bool
) -> PluginRecord | None:
    """Register what `choice` names, before parsing; the record of it, None for native layers.

    `carried`: a library shall be put inside the (version-compatible) engine.

    Raises `EngineError` for TensorRT for RTX, a library that isn't for this TensorRT or GPU, or a
    process in which another choice has been registered before.
    """
    require_plugins(choice, backend)
    _refuse_others(choice, backend)
    aot_plugin.forget_failures()
    if choice.kind == LIBRARY:
        assert choice.library is not None
        library = plugin_library.read(choice.library, backend, targets)
        plugin_library.load(library, backend)
        return PluginRecord(
            LIBRARY,
            library.sha256,
            library.operator_version,
            library.tensorrt,
            library.targets,
            carried,
            library.path,
        )
    if choice.kind == EMBEDDED:
        kernels = aot_plugin.register(backend, targets[0])
        return PluginRecord(
            EMBEDDED,
            kernels.sha256,
            OPERATOR_VERSION,
            backend.version,
            (kernels.target,),
            carried=True,
        )
    return None


def require_plugins(choice: PluginChoice, backend: Backend) -> None:
    """Raise `EngineError` where a plugin is asked of TensorRT for RTX."""
    if choice.kind != NONE and backend.is_rtx:
        raise EngineError(
            f"{backend.label} has no plugins, and its parser would end this process on meeting "
            f"one: use --plugin {NONE}, or --backend {TENSORRT}"
        )


def identity(choice: PluginChoice, backend: Backend, targets: tuple[str, ...]) -> str | None:
    """Hash of the plugin that `choice` names, None for native layers; raises as `prepare`."""
    require_plugins(choice, backend)
    if choice.kind == LIBRARY:
        assert choice.library is not None
        return plugin_library.read(choice.library, backend, targets).sha256
    return Compiler.find(targets[0]).sha256 if choice.kind == EMBEDDED else None


def found_again(
    record: PluginRecord | None, choice: PluginChoice, backend: Backend
) -> PluginRecord | None:
    """A record read from a file, with the place of the library that `choice` names."""
    if record is None or choice.library is None:
        return record
    source = plugin_library.library_file(choice.library, backend)
    return dataclasses.replace(record, source=source)


def registered(backend: Backend) -> tuple[str, ...]:
    """Names of our operators that have a creator in this process's registry."""
    registry = backend.module.get_plugin_registry()
    creators = registry.all_creators
    ours = [c for c in creators if getattr(c, "plugin_namespace", None) == NAMESPACE]
    return tuple(sorted(creator.name for creator in ours))


def _refuse_others(choice: PluginChoice, backend: Backend) -> None:
    ours = {LIBRARY: plugin_library.loaded(), EMBEDDED: aot_plugin.registered()}
    if ours.get(choice.kind):
        return
    found = registered(backend)
    if found:
        raise EngineError(
            f"--plugin {choice.kind} can't be built in this process: a plugin for "
            f"{', '.join(found)} is registered already (by another build, or LD_PRELOAD), and the "
            "parser would take it; build in a process of its own"
        )

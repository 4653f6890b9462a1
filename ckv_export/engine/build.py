"""Build one engine: check, parse, set up, build, write beside, rename."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckv_export.contract import GraphSpec, Profile
from ckv_export.engine import aot_plugin, inspection, plugins, pool_steps, timing_cache, weights
from ckv_export.engine.backends import Backend
from ckv_export.engine.files import write_plan
from ckv_export.engine.layers import LayerReport
from ckv_export.engine.messages import Messages, listen, readable
from ckv_export.engine.network import EngineTensor, ParsedNetwork, check_tensors, parse_onnx
from ckv_export.engine.plugins import PluginRecord
from ckv_export.engine.profiles import add_profile, input_shapes, used_axes
from ckv_export.engine.progress import (
    Cancellation,
    ProgressListener,
    Silent,
    deferred_signals,
    monitor,
)
from ckv_export.engine.settings import DEFAULT, Settings, apply_settings
from ckv_export.engine.targets import PORTABLE, parse_targets, set_targets
from ckv_export.errors import EngineError

OPTIMIZATION_LEVELS = range(6)


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    `onnx`: file with its external data beside it; `tensors`: the inputs and outputs it must
    have; `profile`: a range for every axis of the inputs; `more_profiles`: further ones, between
    which the runtime chooses; `targets`: see `parse_targets`;
    `workspace_mib`: most scratch memory a kernel may use, in MiB (None: the GPU's);
    `optimization_level`: 0 (fastest build) to 5 (None: the library's default); `settings`: plugin
    and compatibility.
    """

    onnx: Path
    tensors: GraphSpec
    profile: Profile
    targets: tuple[str, ...] = (PORTABLE,)
    workspace_mib: int | None = None
    optimization_level: int | None = None
    settings: Settings = DEFAULT
    more_profiles: tuple[Profile, ...] = ()

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """Every optimization profile, in the order in which an engine counts them."""
        return (self.profile, *self.more_profiles)

    def __post_init__(self) -> None:
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise EngineError(f"workspace_mib must be 1 or more, got {self.workspace_mib}")
        level = self.optimization_level
        if level is not None and level not in OPTIMIZATION_LEVELS:
            raise EngineError(f"optimization_level must be 0 to 5, got {level}")


@dataclass(frozen=True)
class BuiltEngine:
    """What was built, as read back from the network and the file.

    `targets`: GPU generations; `profile`: range per axis, ``{"B": "1:1:64"}``; `seconds`:
    the whole of `build_engine`; `bytes`: size of the file; `layers`: before fusion;
    `plugins`: layers that a plugin computes; `warnings`: what the library said; `pool_step`: who
    computes it, see `pool_steps.summary`; `plugin`: the one that was asked for; `report`: what the
    engine consists of; `settings`: see `Settings.recorded`; `profiles`: ranges of every profile;
    `cached`: whether it was built before (`cache.cached_build`).
    """

    path: Path
    backend: str
    backend_version: str
    targets: tuple[str, ...]
    profile: dict[str, str]
    seconds: float
    bytes: int
    layers: int
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    plugins: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    pool_step: str = pool_steps.NATIVE
    plugin: PluginRecord | None = None
    report: LayerReport | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    profiles: tuple[Mapping[str, str], ...] = ()
    cached: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BuiltEngine:
        """Read `to_dict` data; raises KeyError or TypeError where a field is missing or odd."""
        read = {
            "path": Path(data["path"]),
            "inputs": tuple(EngineTensor.from_dict(t) for t in data["inputs"]),
            "outputs": tuple(EngineTensor.from_dict(t) for t in data["outputs"]),
            "plugin": data["plugin"] and PluginRecord.from_dict(data["plugin"]),
            "report": data["report"] and LayerReport.from_dict(data["report"]),
            **{name: tuple(data[name]) for name in ("targets", "plugins", "warnings", "profiles")},
        }
        return cls(**{**data, **read})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return dataclasses.asdict(self) | {
            "path": str(self.path),
            "plugin": self.plugin and self.plugin.to_dict(),
            "report": self.report and self.report.to_dict(),
        }


def build_engine(
    request: BuildRequest,
    backend: Backend,
    out: Path,
    progress: ProgressListener | None = None,
) -> BuiltEngine:
    """Build the engine of `request` and put it at `out`, replacing what was there.

    The file is written under a temporary name in the same folder and renamed, so `out` is
    the old engine or the new one, never half of one. Memory peak: about twice the weights.
    Router products must stay fp32, so TF32 is off.

    Raises `EngineError` for a target, profile or graph that is refused, naming the node or
    input, and where the pool step is not computed by what was asked for; a SIGINT or SIGTERM
    stops the build and is delivered once all is cleaned up.
    """
    started = time.perf_counter()
    settings = request.settings
    _require_file(request.onnx)
    _require_folder(out)
    settings.require_supported(backend)
    targets = parse_targets(request.targets, backend)
    plugin = plugins.prepare(
        settings.plugin, backend, settings.code_targets(targets), settings.version_compatible
    )
    with listen(backend) as (logger, messages):
        builder = _new_builder(backend, logger, messages)
        parsed = parse_onnx(request.onnx, backend, builder, logger, messages)
        check_tensors(parsed, request.tensors, request.onnx)
        steps = pool_steps.pool_steps(pool_steps.pool_nodes(request.onnx), parsed.plugins)
        # Asked before the build too: minutes of work must not end in that.
        pool_steps.require_asked(steps, settings.plugin, backend)
        if settings.refit:
            weights.mark_refittable(parsed.network, request.onnx, backend, messages)
        config = _configure(request, backend, builder, targets, plugin)
        plan = _serialize(builder, parsed, config, backend, progress or Silent(), messages)
        if settings.timing_cache is not None:
            timing_cache.update(settings.timing_cache, config)
        report = inspection.report(
            plan, parsed, steps, settings.plugin, backend, targets, logger, messages
        )
        size = write_plan(plan, out)
        return BuiltEngine(
            path=out,
            backend=backend.name,
            backend_version=backend.version,
            targets=targets,
            profile=used_axes(request.tensors, request.profile),
            profiles=tuple(used_axes(request.tensors, p) for p in request.profiles),
            seconds=time.perf_counter() - started,
            bytes=size,
            layers=parsed.layers,
            inputs=parsed.inputs,
            outputs=parsed.outputs,
            plugins=parsed.plugins,
            warnings=tuple(dict.fromkeys(map(readable, messages.warnings))),
            pool_step=pool_steps.summary(steps),
            plugin=plugin,
            report=report,
            settings=settings.recorded(),
        )


def _require_file(onnx: Path) -> None:
    if not onnx.is_file():
        raise EngineError(f"there is no ONNX file {onnx}")


def _require_folder(out: Path) -> None:
    # Asked before the build: minutes of work must not end in a typing error.
    if not out.parent.is_dir():
        raise EngineError(f"there is no folder {out.parent} to write the engine {out.name} to")
    if out.is_dir():
        raise EngineError(f"{out} is a folder, and an engine is a file: name one inside it")


def _new_builder(backend: Backend, logger: Any, messages: Messages) -> Any:
    try:
        return backend.module.Builder(logger)
    except (TypeError, RuntimeError) as error:
        # The full TensorRT makes no builder without a GPU; its bindings say only "nullptr".
        reason = messages.first_error() or str(error)
        raise EngineError(f"{backend.label} can't start a build here: {reason}") from error


def _configure(
    request: BuildRequest,
    backend: Backend,
    builder: Any,
    targets: tuple[str, ...],
    plugin: PluginRecord | None,
) -> Any:
    module = backend.module
    config = builder.create_builder_config()
    # On by default: 10 bits of mantissa in a router product flip an index in a thousand.
    config.clear_flag(module.BuilderFlag.TF32)
    set_targets(config, targets, backend)
    for profile in request.profiles:
        add_profile(builder, config, input_shapes(request.tensors, profile))
    if request.workspace_mib is not None:
        workspace = module.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(workspace, request.workspace_mib << 20)
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    apply_settings(request.settings, backend, config)
    if plugin is not None and plugin.carried and plugin.source is not None:
        config.plugins_to_serialize = [str(plugin.source.resolve())]
    return config


def _serialize(
    builder: Any,
    parsed: ParsedNetwork,
    config: Any,
    backend: Backend,
    progress: ProgressListener,
    messages: Messages,
) -> Any:
    """Run the build; return the engine's bytes as the library's host memory."""
    cancellation = Cancellation()
    watcher = monitor(backend, progress, cancellation)
    config.progress_monitor = watcher
    with deferred_signals(cancellation):
        plan = builder.build_serialized_network(parsed.network, config)
    # The configuration outlives the monitor and must not point at it any longer.
    config.progress_monitor = None
    if cancellation.failures:
        raise cancellation.failures[0]
    if plan is None and (failure := aot_plugin.failure()) is not None:
        raise failure
    if plan is None:
        reason = messages.first_error() or "the library gives no reason"
        raise EngineError(f"{backend.label} can't build the engine: {reason}")
    return plan

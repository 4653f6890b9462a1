"""A built engine, loaded back and read: what runs, and who computes the pool step."""

from __future__ import annotations

from typing import Any

from ckv_export.engine.backends import Backend
from ckv_export.engine.layers import ENGINE, NETWORK, Layer, LayerReport, inspected_layers
from ckv_export.engine.messages import Messages
from ckv_export.engine.network import ParsedNetwork
from ckv_export.engine.plugins import NONE, PluginChoice
from ckv_export.engine.pool_steps import PLUGIN
from ckv_export.engine.targets import present_gpu
from ckv_export.errors import EngineError


def report(
    plan: Any,
    parsed: ParsedNetwork,
    steps: dict[str, str],
    choice: PluginChoice,
    backend: Backend,
    targets: tuple[str, ...],
    logger: Any,
    messages: Messages,
) -> LayerReport:
    """Read the engine `plan` where a GPU of its `targets` is present, else the network.

    Raises `EngineError` for an engine that can't be loaded where it was built, and where it has
    fewer plugin layers than the network of `steps`.
    """
    if not _loadable(backend, targets):
        return LayerReport(NETWORK, parsed.layer_list(), steps)
    layers, inspector = inspect(plan, backend, logger, messages)
    _require_plugins(layers, steps, choice, backend)
    return LayerReport(ENGINE, layers, steps, inspector)


def inspect(
    plan: Any, backend: Backend, logger: Any, messages: Messages
) -> tuple[tuple[Layer, ...], Any]:
    """Layers of the serialized engine `plan` and its inspector's JSON; raises `EngineError`."""
    module = backend.module
    runtime = module.Runtime(logger)
    # A version-compatible engine holds code for the host; we have just built this one.
    runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason = messages.first_error() or "the library gives no reason"
        raise EngineError(f"{backend.label} can't load the engine it has just built: {reason}")
    text = engine.create_engine_inspector().get_engine_information(
        module.LayerInformationFormat.JSON
    )
    try:
        return inspected_layers(text or "")
    except ValueError as error:
        raise EngineError(
            f"the engine inspector of {backend.label} gives no layers: {error}"
        ) from error


def _loadable(backend: Backend, targets: tuple[str, ...]) -> bool:
    # The full TensorRT builds for the GPU that is here; so may TensorRT for RTX.
    return not backend.is_rtx or present_gpu() in targets


def _require_plugins(
    layers: tuple[Layer, ...], steps: dict[str, str], choice: PluginChoice, backend: Backend
) -> None:
    """A plugin is never fused, so each of the network's has a layer of the engine at least."""
    wanted = sum(built == PLUGIN for built in steps.values())
    found = sum(layer.is_plugin for layer in layers)
    if choice.kind != NONE and found < wanted:
        raise EngineError(
            f"--plugin {choice.kind} was asked for {', '.join(steps)}, but the engine that "
            f"{backend.label} built has {found} plugin layers of {wanted}; no engine was written"
        )

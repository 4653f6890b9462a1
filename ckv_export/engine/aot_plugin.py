"""Our operators as quickly deployable plugins: the engine carries their kernels inside.

``tensorrt.plugin`` (TensorRT 10.9 and later) registers a creator whose plugin hands over PTX, a
launch and integers when the engine is built. The engine then needs neither Python nor a library.
One kernel an operator and no workspace, so attention goes over all events in one pass: for few
users and long histories the plugin library, which splits them, is faster.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from ckv_export.engine import aot_launch
from ckv_export.engine.aot_kernels import Compiler
from ckv_export.engine.aot_launch import GATHER, INPUTS, Launch
from ckv_export.engine.backends import Backend
from ckv_export.errors import CkvError, EngineError, reason

NAMESPACE = "ckv"

_ATTRIBUTES = {"num_heads": int, "scale": float}
_AUTOTUNE_NAMES = {"FLOAT": "FP32", "HALF": "FP16"}

_state: dict[str, Compiler] = {}
"""The compiler under "compiler" once the plugins are registered, which is for the process."""
_failures: list[CkvError] = []


def register(backend: Backend, target: str) -> Compiler:
    """Register the plugins with `backend`, for the GPU generation `target`; once a process.

    Raises `EngineError` without ``tensorrt.plugin``, nvcc or the kernels' sources.
    """
    compiler = Compiler.find(target)
    if not _state:
        trtp = _plugin_module(backend)
        for operator in INPUTS:
            _define(trtp, operator)
    _state["compiler"] = compiler
    return compiler


def registered() -> bool:
    """Whether this process has registered them."""
    return bool(_state)


def forget_failures() -> None:
    """Begin a build: what went wrong in an earlier one explains nothing of it."""
    _failures.clear()


def failure() -> CkvError | None:
    """What went wrong inside a plugin in this build: the library can't carry exceptions."""
    return _failures[0] if _failures else None


def _plugin_module(backend: Backend) -> Any:
    if not hasattr(backend.module, "QuickPluginCreationRequest"):
        raise EngineError(
            f"{backend.label} has no ahead-of-time Python plugins: install TensorRT 10.9 or later, "
            "or use --plugin library"
        )
    try:
        return importlib.import_module(f"{backend.module.__name__}.plugin")
    except ImportError as error:
        raise EngineError(f"{backend.label} can't load its Python plugins: {error}") from error


def _define(trtp: Any, operator: str) -> None:
    """Register an operator's shapes, its tactics, and its kernels."""
    name = f"{NAMESPACE}::{operator}"
    attributes = {} if operator == GATHER else _ATTRIBUTES
    inputs = INPUTS[operator]
    described = dict.fromkeys(inputs, trtp.TensorDesc) | attributes
    shape = _gather_shape if operator == GATHER else _attention_shape
    trtp.register(name)(_signed(shape, described, trtp.TensorDesc))
    if operator != GATHER:
        tuned = _signed(_autotune(trtp), dict.fromkeys((*inputs, "num_heads", "outputs")), None)
        trtp.autotune(name)(tuned)
    arguments = dict.fromkeys((*inputs, *attributes, "outputs", "tactic"))
    result = tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs]
    trtp.aot_impl(name)(_signed(_implementation(trtp, operator), arguments, result))


def _signed(function: Callable[..., Any], arguments: dict[str, Any], result: Any) -> Any:
    """`function` of positional arguments with a signature, which ``tensorrt.plugin`` reads.

    `arguments`: annotation by name, None for none; `result`: the annotation of what it returns.
    """
    empty = inspect.Parameter.empty
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind or empty)
        for name, kind in arguments.items()
    ]
    signature = inspect.Signature(parameters, return_annotation=result or empty)

    def signed(*positional: Any, **named: Any) -> Any:
        return function(*signature.bind(*positional, **named).arguments.values())

    signed.__signature__ = signature  # type: ignore[attr-defined]
    return signed


def _gather_shape(pool: Any, index: Any, user: Any) -> Any:
    out = user.like()
    last = user.ndim - 1
    out.shape_expr[last] = pool.shape_expr[1] + user.shape_expr[last]
    return out


def _attention_shape(query: Any, *rest: Any) -> Any:
    return query.like()


def _autotune(trtp: Any) -> Callable[..., Any]:
    def tactics(*descs: Any) -> Any:
        *inputs, heads, outputs = descs
        names = [desc.dtype.name for desc in (*inputs, *outputs)]
        types = ", ".join(_AUTOTUNE_NAMES.get(name, name) for name in names)
        generation = int(_state["compiler"].target.removeprefix("sm"))
        numbers = aot_launch.attention_tactics(inputs[0], heads, generation)
        return [trtp.AutoTuneCombination(types, "LINEAR", numbers)]

    return tactics


def _implementation(trtp: Any, operator: str) -> Callable[..., Any]:
    def implement(*arguments: Any) -> Any:
        try:
            return _answer(trtp, _launch(trtp, operator, arguments))
        except CkvError as error:
            _failures.append(error)
            raise
        except OSError as error:
            where = f" {error.filename}" if error.filename else ""
            why = f"{reason(error)}{where}"
            _failures.append(EngineError(f"can't make the kernel of {operator}: {why}"))
            raise

    return implement


def _launch(trtp: Any, operator: str, arguments: tuple[Any, ...]) -> Launch:
    if operator == GATHER:
        return aot_launch.gather_launch(trtp, arguments[:3])
    *inputs, heads, scale, _, tactic = arguments
    return aot_launch.attention_launch(trtp, operator, inputs, heads, scale, tactic)


def _answer(trtp: Any, launch: Launch) -> Any:
    params = trtp.KernelLaunchParams()
    params.grid_x, params.grid_y, params.grid_z = launch.grid
    params.block_x = launch.threads
    params.shared_mem = launch.shared_bytes
    numbers = trtp.SymIntExprs.from_tuple([trtp.SymInt32(n) for n in launch.numbers])
    return launch.kernel.symbol, _state["compiler"].ptx(launch.kernel), params, numbers

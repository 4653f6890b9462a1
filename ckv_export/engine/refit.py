"""New weights into a built engine, without building it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckv_export.engine.backends import Backend
from ckv_export.engine.files import write_plan
from ckv_export.engine.loading import BundleEngine
from ckv_export.engine.messages import Messages, listen, readable
from ckv_export.engine.rtx_runtime import require_valid
from ckv_export.engine.weights import changed_weights
from ckv_export.errors import EngineError


def refit_engine(engine: BundleEngine, onnx: Path, backend: Backend, out: Path) -> bool:
    """Write `engine` with the weights of the file `onnx` to `out`, replacing what was there.

    `onnx`: a later export of the graph that the engine was built from, the same but for its learned
    weights. `out` is the old file or the new one, never half of one. Memory peak: the engine twice
    and the weights. Returns whether the new engine can be refitted in its turn; before TensorRT
    10.14 it can't.

    Raises `EngineError` as `BundleEngine.prepare` does, and for another graph, an engine that was
    not built for it, a weight that has no new value, and where the library refuses.
    """
    engine.prepare(backend)
    changed = changed_weights(engine.graph_file, onnx)
    with listen(backend) as (logger, messages):
        loaded = _load(engine, backend, logger, messages)
        _exchange(loaded, engine.path, onnx, changed, backend, logger, messages)
        plan, again = _serialize(loaded, engine.path, backend, messages)
        write_plan(plan, out)
    return again


def _load(engine: BundleEngine, backend: Backend, logger: Any, messages: Messages) -> Any:
    runtime = backend.module.Runtime(logger)
    plan = engine.path.read_bytes()
    if backend.is_rtx:
        require_valid(runtime, plan, engine.path, backend)
    loaded = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        raise _failure("load the engine", engine.path, backend, messages)
    if not loaded.refittable:
        raise EngineError(
            f"{engine.path} was not built to be refitted: export with --pool refit, and build"
        )
    return loaded


def _exchange(
    loaded: Any,
    path: Path,
    onnx: Path,
    changed: frozenset[str],
    backend: Backend,
    logger: Any,
    messages: Messages,
) -> None:
    """Give the loaded engine every weight of `onnx`, or raise."""
    refitter = backend.module.Refitter(loaded, logger)
    fixed = changed - set(refitter.get_all_weights())
    if fixed:
        raise EngineError(
            f"{path} can't exchange the weights {', '.join(sorted(fixed))}, which have changed: "
            "run ckv-export build"
        )
    # It owns the weights until they are in the engine.
    parser = backend.module.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx)):
        told = [readable(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise _failure(f"put the weights of {onnx} into", path, backend, messages, told)
    missing = refitter.get_missing_weights()
    if missing:
        raise EngineError(
            f"{onnx} has no values for {', '.join(sorted(map(repr, missing)))}, which {path} needs "
            "with those that it has: run ckv-export build"
        )
    if not refitter.refit_cuda_engine():
        raise _failure("refit the engine", path, backend, messages)


def _serialize(loaded: Any, path: Path, backend: Backend, messages: Messages) -> tuple[Any, bool]:
    """The engine's bytes, weights included, and whether it stays refittable."""
    flags = backend.module.SerializationFlag
    config = loaded.create_serialization_config()
    config.clear_flag(flags.EXCLUDE_WEIGHTS)
    # Without it, an engine that has its weights is written as one that never changes again.
    again = getattr(flags, "INCLUDE_REFIT", None)
    if again is not None:
        config.set_flag(again)
    plan = loaded.serialize_with_config(config)
    if plan is None:
        raise _failure("write the refitted engine of", path, backend, messages)
    return plan, again is not None


def _failure(
    what: str, path: Path, backend: Backend, messages: Messages, told: list[str] | None = None
) -> EngineError:
    reason = "; ".join(told or []) or messages.first_error() or "the library gives no reason"
    return EngineError(f"{backend.label} can't {what} {path}: {reason}")

"""New weights into a built engine, without building it again."""

from __future__ import annotations

from dataclasses import dataclass
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
        # Held here, since it must outlive the engine that it loads.
        runtime = backend.module.Runtime(logger)
        refit = _Refit(engine.path, onnx, backend, logger, messages)
        plan, again = refit.plan(runtime, changed)
        write_plan(plan, out)
    return again


@dataclass(frozen=True)
class _Refit:
    """One engine's file, the weights that it gets, and the library that puts them in."""

    path: Path
    onnx: Path
    backend: Backend
    logger: Any
    messages: Messages

    def plan(self, runtime: Any, changed: frozenset[str]) -> tuple[Any, bool]:
        """The new engine's bytes, weights included, and whether it stays refittable."""
        loaded = self._load(runtime)
        self._exchange(loaded, changed)
        return self._serialize(loaded)

    def _load(self, runtime: Any) -> Any:
        plan = self.path.read_bytes()
        if self.backend.is_rtx:
            require_valid(runtime, plan, self.path, self.backend)
        loaded = runtime.deserialize_cuda_engine(plan)
        if loaded is None:
            raise self._failure("load the engine")
        if not loaded.refittable:
            raise EngineError(
                f"{self.path} was not built to be refitted: export with --pool refit, and build"
            )
        return loaded

    def _exchange(self, loaded: Any, changed: frozenset[str]) -> None:
        refitter = self.backend.module.Refitter(loaded, self.logger)
        fixed = changed - set(refitter.get_all_weights())
        if fixed:
            raise EngineError(
                f"{self.path} can't exchange the weights {', '.join(sorted(fixed))}, which have "
                "changed: run ckv-export build"
            )
        # It owns the weights until they are in the engine.
        parser = self.backend.module.OnnxParserRefitter(refitter, self.logger)
        if not parser.refit_from_file(str(self.onnx)):
            told = [readable(parser.get_error(i).desc()) for i in range(parser.num_errors)]
            raise self._failure(f"put the weights of {self.onnx} into", "; ".join(told))
        missing = sorted(map(repr, refitter.get_missing_weights()))
        if missing:
            raise EngineError(
                f"{self.onnx} has no values for {', '.join(missing)}, which {self.path} needs with "
                "those that it has: run ckv-export build"
            )
        if not refitter.refit_cuda_engine():
            raise self._failure("refit the engine")

    def _serialize(self, loaded: Any) -> tuple[Any, bool]:
        flags = self.backend.module.SerializationFlag
        config = loaded.create_serialization_config()
        config.clear_flag(flags.EXCLUDE_WEIGHTS)
        # Without it, an engine that has its weights is written as one that never changes again.
        again = getattr(flags, "INCLUDE_REFIT", None)
        if again is not None:
            config.set_flag(again)
        plan = loaded.serialize_with_config(config)
        if plan is None:
            raise self._failure("write the refitted engine of")
        return plan, again is not None

    def _failure(self, what: str, told: str = "") -> EngineError:
        reason = told or self.messages.first_error() or "the library gives no reason"
        return EngineError(f"{self.backend.label} can't {what} {self.path}: {reason}")

"""What only the runtime of TensorRT for RTX has.

A verdict on an engine, a cache of the kernels that it compiles, and CUDA graphs of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckv_export.engine.backends import TENSORRT_RTX, Backend
from ckv_export.engine.files import write_whole
from ckv_export.errors import EngineError, reason

_REASONS = {
    "VERSION_MISMATCH": "it was built with another version: run ckv-export build",
    "UNSUPPORTED_CC": "it was not built for this GPU: run ckv-export build --target current",
    "OLD_CUDA_DRIVER": "the CUDA driver is too old: update it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old: update it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it",
    "MALFORMED_ENGINE": "it is damaged: run ckv-export build",
    "CUDA_ERROR": "the GPU can't be asked: is there one, and its driver?",
}


def require_valid(runtime: Any, plan: bytes, path: Path, backend: Backend) -> None:
    """Raise `EngineError` with the library's reasons where it calls the engine `plan` invalid."""
    validity, found = runtime.get_engine_validity(plan)
    if validity != backend.module.EngineValidity.INVALID:
        return
    flags = backend.module.EngineInvalidityDiagnostics.__members__
    reasons = [_REASONS.get(name, name) for name, flag in flags.items() if found & int(flag)]
    told = "; ".join(reasons) or "the library gives no reason; is there a GPU?"
    raise EngineError(f"{backend.label} can't run {path}: {told}")


def new_context(engine: Any, backend: Backend, cache: RuntimeCache | None, graphs: bool) -> Any:
    """An execution context without scratch memory; None where the library refuses.

    `graphs`: the library captures CUDA graphs itself, anew whenever a shape or an address changes:
    it alone knows when its kernels for a shape are compiled.
    """
    config = engine.create_runtime_config()
    strategies = backend.module.ExecutionContextAllocationStrategy
    config.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
    if graphs:
        config.cuda_graph_strategy = backend.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    if cache is not None:
        cache.attach(config)
    return engine.create_execution_context(runtime_config=config)


class RuntimeCache:
    """Kernels compiled for this GPU, in a file: the second start of an engine is faster.

    The library itself rejects a file of another GPU, driver or version, and starts an empty cache;
    the file is then replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache: Any = None

    def require_supported(self, backend: Backend) -> None:
        """Raise `EngineError` unless `backend` compiles kernels at run time."""
        if not backend.is_rtx:
            raise EngineError(
                f"{backend.label} has no runtime cache, its engines hold their kernels: only "
                f"{TENSORRT_RTX} has one"
            )

    def attach(self, config: Any) -> None:
        """Let contexts of a runtime configuration compile into the cache, all into one."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._path.is_file():
                self._cache.deserialize(self._path.read_bytes())
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the cache to its file, whole or not at all; raises `EngineError`."""
        cache, self._cache = self._cache, None
        if cache is None:
            return
        try:
            write_whole(cache.serialize(), self._path)
        except OSError as error:
            raise EngineError(
                f"can't write the runtime cache {self._path}: {reason(error)}"
            ) from error

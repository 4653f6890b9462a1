"""A stand-in for TensorRT's runtime, which computes y = x + 1 where mask, else x."""

from __future__ import annotations

import ctypes
import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ckv_export.contract import GraphSpec, TensorSpec
from ckv_export.engine import Backend
from ckv_export.runtimes.tensorrt import TensorRtRunner
from ckv_testing.fake_device import STREAM, FakeMemory

IO = GraphSpec(
    "prefill",
    (TensorSpec("x", "float32", ("B", "S")), TensorSpec("mask", "bool", ("B", "S"))),
    (TensorSpec("y", "float32", ("B", "S")),),
)
PLAN = b"an engine"
RANGES = [((1, 0), (1, 6), (4, 40)), ((1, 41), (1, 90), (1, 100))]
"""Of the two profiles: up to 4 short histories, or one long one."""
SCRATCH = 12

DataType = enum.Enum("DataType", "FLOAT BOOL INT32")
Validity = enum.IntEnum("Validity", "VALID SUBOPTIMAL INVALID", start=0)
Diagnostics = enum.IntFlag("Diagnostics", "VERSION_MISMATCH UNSUPPORTED_CC MALFORMED_ENGINE")
Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
Strategy = enum.Enum("Strategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")
GraphStrategy = enum.Enum("GraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")


class FakeLogger:
    def __init__(self) -> None: ...


FakeLogger.Severity = Severity  # type: ignore[attr-defined]


class FakeContext:
    """Reads and writes the addresses it was given, when the stream comes to it.

    As in older versions, only the first of an engine begins with a profile. `settled`: it has run
    since its shapes were last changed, without which it can't be captured.
    """

    def __init__(self, engine: FakeEngine, strategy: Strategy, config: Any) -> None:
        self.engine, self.strategy, self.runtime_config = engine, strategy, config
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.active_optimization_profile = -1 if engine.contexts else 0
        self.changes, self.settled = 0, False
        self.scratch = (0, 0)

    def set_device_memory(self, address: int, size: int) -> None:
        assert self.strategy is Strategy.USER_MANAGED
        self.scratch = (address, size)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == STREAM
        self.active_optimization_profile = profile
        self._changed()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.active_optimization_profile >= 0, "no profile was chosen"
        self.shapes[name] = shape
        self._changed()
        smallest, _, largest = RANGES[self.active_optimization_profile]
        return all(a <= n <= b for a, n, b in zip(smallest, shape, largest, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address, "a null address"
        self.addresses[name] = address
        self._changed()
        return True

    def _changed(self) -> None:
        self.changes, self.settled = self.changes + 1, False

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["x"]

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == STREAM
        memory = self.engine.memory
        if self.engine.fails == "always" or (self.engine.fails == "capture" and memory.recording):
            self.engine.logger.log(Severity.ERROR, "the GPU fell off")
            return False
        assert memory.at(self.scratch[0]).nbytes >= self.scratch[1] == SCRATCH
        if memory.recording is not None:
            assert self.settled, "captured before it has run with its shapes"
        self.settled = True
        memory.put(self._work(self.changes))
        return True

    def _work(self, changes: int) -> Any:
        count = int(np.prod(self.shapes["x"]))
        addresses = dict(self.addresses)

        def work() -> None:
            assert changes == self.changes, "a context was changed under its graph"
            self.engine.memory.at(self.scratch[0])
            x, mask, y = (self._view(addresses[n], n, count) for n in ("x", "mask", "y"))
            y[:] = x + mask

        return work

    def _view(self, address: int, name: str, count: int) -> np.ndarray:
        self.engine.memory.at(address)
        kind: Any = ctypes.c_bool if name == "mask" else ctypes.c_float
        return np.ctypeslib.as_array((kind * count).from_address(address))


class FakeRuntimeCache:
    """Holds bytes; takes those of its own GPU only."""

    def __init__(self) -> None:
        self.data = b"kernels: none"

    def deserialize(self, blob: bytes) -> bool:
        fits = blob.startswith(b"kernels")
        self.data = blob if fits else self.data
        return fits

    def serialize(self) -> bytes:
        return self.data + b", one more"


class FakeRuntimeConfig:
    cache: FakeRuntimeCache | None = None
    cuda_graph_strategy = GraphStrategy.DISABLED
    allocation = Strategy.STATIC

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.allocation = strategy


class FakeEngine:
    num_optimization_profiles = len(RANGES)
    device_memory_size_v2 = SCRATCH

    def __init__(self, logger: Any) -> None:
        self.tensors = {"x": DataType.FLOAT, "mask": DataType.BOOL, "y": DataType.FLOAT}
        self.logger, self.contexts, self.fails = logger, list[FakeContext](), ""
        self.memory: FakeMemory

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return RANGES[profile]

    def create_execution_context(
        self, strategy: Strategy = Strategy.STATIC, runtime_config: Any = None
    ) -> FakeContext:
        if runtime_config is not None:
            strategy = runtime_config.allocation
        self.contexts.append(FakeContext(self, strategy, runtime_config))
        return self.contexts[-1]


class FakeRtxEngine(FakeEngine):
    """As TensorRT for RTX has it."""

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()


class FakeRuntime:
    engine = FakeEngine

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        if plan != PLAN:
            self.logger.log(Severity.ERROR, "Error Code 1: Serialization (magic tag is wrong)")
            return None
        return self.engine(self.logger)


class FakeRtxRuntime(FakeRuntime):
    """As TensorRT for RTX has it."""

    engine = FakeRtxEngine

    def get_engine_validity(self, plan: bytes) -> tuple[Validity, int]:
        if plan == b"for another GPU and version":
            return Validity.INVALID, Diagnostics.VERSION_MISMATCH | Diagnostics.UNSUPPORTED_CC
        return (Validity.INVALID, 0) if plan == b"no reason" else (Validity.VALID, 0)


_BOTH = {"ILogger": FakeLogger, "ExecutionContextAllocationStrategy": Strategy}
MODULE: Any = SimpleNamespace(Runtime=FakeRuntime, **_BOTH)
RTX_MODULE: Any = SimpleNamespace(
    Runtime=FakeRtxRuntime,
    EngineValidity=Validity,
    EngineInvalidityDiagnostics=Diagnostics,
    CudaGraphStrategy=GraphStrategy,
    **_BOTH,
)
FULL = Backend("fake", MODULE, "1.0")
RTX = Backend("tensorrt_rtx", RTX_MODULE, "1.7")


class FakeRunner(TensorRtRunner):
    """The runner itself, on the stand-ins; `room`: bytes of the device, None for enough."""

    def __init__(self, path: Path, *words: Any, room: int | None = None, **options: Any) -> None:
        super().__init__(path, *(words or (IO, FULL)), **options)
        self._room = room

    def _open_memory(self) -> FakeMemory:
        return FakeMemory(self._room)

    def _deserialize(self, messages: Any) -> Any:
        engine = super()._deserialize(messages)
        engine.memory = self._memory
        return engine


def feeds(users: int, events: int, first: float = 0.0) -> dict[str, np.ndarray]:
    """Inputs x [users, events], rising from `first`, and a mask of the even ones."""
    x = first + np.arange(users * events, dtype=np.float32).reshape(users, events)
    return {"x": x, "mask": x % 2 == 0}


def expected(given: dict[str, np.ndarray]) -> np.ndarray:
    """What an engine makes of `feeds`."""
    return given["x"] + given["mask"]

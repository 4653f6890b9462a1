"""The runner: with a stand-in for the library on the CPU, and for real where there is a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ckv_export.contract import GraphSpec, TensorSpec
from ckv_export.engine import Backend, build_engine, load
from ckv_export.errors import EngineError, MissingDependency
from ckv_export.runtimes.tensorrt import CudaMemory, TensorRtRunner

X = TensorSpec("x", "float32", ("B", "S"))
MASK = TensorSpec("mask", "bool", ("B", "S"))
Y = TensorSpec("y", "float32", ("B", "S"))
IO = GraphSpec("prefill", (X, MASK), (Y,))
STREAM = 77

DataType = enum.Enum("DataType", "FLOAT BOOL INT32")
Validity = enum.IntEnum("Validity", "VALID SUBOPTIMAL INVALID", start=0)
Diagnostics = enum.IntFlag("Diagnostics", "VERSION_MISMATCH UNSUPPORTED_CC MALFORMED_ENGINE")
Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")


class FakeLogger:
    def __init__(self) -> None: ...


FakeLogger.Severity = Severity  # type: ignore[attr-defined]


class FakeContext:
    """y = x + 1 where mask, else x; reads and writes the addresses it was given."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.fails = False
        self.profile = 0
        self.switches: list[tuple[int, int]] = []
        self.runtime_config: Any = None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        self.switches.append((profile, stream))
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        smallest, largest = [((1, 0), (4, 40)), ((1, 41), (1, 100))][self.profile]
        return all(a <= n <= b for a, n, b in zip(smallest, shape, largest, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address, "a null address"
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["x"]

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == STREAM
        if self.fails:
            self.logger.log(Severity.ERROR, "the GPU fell off")
            return False
        count = int(np.prod(self.shapes["x"]))
        x = self._view("x", ctypes.c_float, count)
        self._view("y", ctypes.c_float, count)[:] = x + self._view("mask", ctypes.c_bool, count)
        return True

    def _view(self, name: str, kind: Any, count: int) -> np.ndarray:
        return np.ctypeslib.as_array((kind * count).from_address(self.addresses[name]))


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

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return True


class FakeEngine:
    def __init__(self, logger: Any) -> None:
        self.tensors = {"x": DataType.FLOAT, "mask": DataType.BOOL, "y": DataType.FLOAT}
        self.context = FakeContext(logger)

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name]

    num_optimization_profiles = 2

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        """Up to 4 short histories, or one long one."""
        return [[(1, 0), (1, 6), (4, 40)], [(1, 41), (1, 90), (1, 100)]][profile]

    def create_execution_context(self, runtime_config: Any = None) -> FakeContext:
        self.context.runtime_config = runtime_config
        return self.context

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()


class FakeRuntime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False

    def get_engine_validity(self, plan: bytes) -> tuple[Validity, int]:
        if plan == b"for another GPU and version":
            return Validity.INVALID, Diagnostics.VERSION_MISMATCH | Diagnostics.UNSUPPORTED_CC
        return (Validity.INVALID, 0) if plan == b"no reason" else (Validity.VALID, 0)

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        if plan != b"an engine":
            self.logger.log(Severity.ERROR, "Error Code 1: Serialization (magic tag is wrong)")
            return None
        return FakeEngine(self.logger)


MODULE: Any = SimpleNamespace(
    ILogger=FakeLogger,
    Runtime=FakeRuntime,
    EngineValidity=Validity,
    EngineInvalidityDiagnostics=Diagnostics,
)
FAKE = Backend("fake", MODULE, "1.0")
RTX = Backend("tensorrt_rtx", MODULE, "1.7")


class HostMemory(CudaMemory):
    """The same buffers in host memory, so that the stand-in can read them."""

    device = "cpu"
    handle = STREAM

    def __init__(self) -> None: ...

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()


class HostRunner(TensorRtRunner):
    def _open_memory(self) -> CudaMemory:
        return HostMemory()


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "prefill.engine"
    path.write_bytes(b"an engine")
    return path


def feeds(users: int, events: int) -> dict[str, np.ndarray]:
    x = np.arange(users * events, dtype=np.float32).reshape(users, events)
    return {"x": x, "mask": x % 2 == 0}


@pytest.mark.parametrize(("users", "events"), [(1, 1), (2, 5), (3, 0), (4, 40)])
def test_values_and_shapes(engine: Path, users: int, events: int) -> None:
    given = feeds(users, events)
    with HostRunner(engine, IO, FAKE) as runner:
        for _ in range(2):
            result = runner.infer(given)
            assert list(result) == ["y"]
            np.testing.assert_array_equal(result["y"], given["x"] + given["mask"])
            assert result["y"].shape == (users, events)
            assert result["y"].dtype == np.float32


def test_inputs_need_not_be_contiguous_or_writable(engine: Path) -> None:
    given = {name: np.asfortranarray(value) for name, value in feeds(3, 4).items()}
    for value in given.values():
        value.flags.writeable = False
    with HostRunner(engine, IO, FAKE) as runner:
        np.testing.assert_array_equal(runner.infer(given)["y"], given["x"] + given["mask"])


def test_shape_outside_the_profile_names_input_and_range(engine: Path) -> None:
    with (
        HostRunner(engine, IO, FAKE) as runner,
        pytest.raises(
            EngineError, match=r"takes input 'x' from \[1, 0\] to \[4, 40\], got \[5, 2\]"
        ),
    ):
        runner.infer(feeds(5, 2))


def test_the_first_profile_that_fits_is_taken(engine: Path) -> None:
    with HostRunner(engine, IO, FAKE) as runner:
        for users, events in ((2, 40), (1, 41), (1, 100), (4, 0), (1, 50)):
            given = feeds(users, events)
            np.testing.assert_array_equal(runner.infer(given)["y"], given["x"] + given["mask"])
        assert runner._context.switches == [(1, STREAM), (0, STREAM), (1, STREAM)]
        with pytest.raises(EngineError, match=r"from \[1, 41\] to \[1, 100\], got \[2, 50\]"):
            runner.infer(feeds(2, 50))
        # Loaded anew, it begins with the first profile again.
    runner.activate()
    assert runner._profile == 0


def test_failed_run_gives_the_reason(engine: Path) -> None:
    with HostRunner(engine, IO, FAKE) as runner:
        runner._context.fails = True
        with pytest.raises(EngineError, match=r"can't run .*: the GPU fell off"):
            runner.infer(feeds(1, 1))


def test_damaged_engine_gives_the_reason(engine: Path) -> None:
    engine.write_bytes(b"half an eng")
    runner = HostRunner(engine, IO, FAKE)
    with pytest.raises(EngineError, match=r"can't load .*: magic tag is wrong"):
        runner.activate()
    assert runner._runtime is None


@pytest.fixture
def rtx_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's logger must not be taken for the real library's."""
    monkeypatch.setattr("ckv_export.engine.messages._loggers", {})


@pytest.mark.usefixtures("rtx_loggers")
def test_rtx_says_why_an_engine_is_invalid(engine: Path) -> None:
    engine.write_bytes(b"for another GPU and version")
    with pytest.raises(EngineError, match=r"another version: .*; it was not built for this GPU"):
        HostRunner(engine, IO, RTX).activate()
    engine.write_bytes(b"no reason")
    with pytest.raises(EngineError, match="gives no reason"):
        HostRunner(engine, IO, RTX).activate()


@pytest.mark.usefixtures("rtx_loggers")
def test_runtime_cache_is_read_and_written(engine: Path, tmp_path: Path) -> None:
    file = tmp_path / "kernels.cache"
    for stored in (b"kernels: none, one more", b"kernels: none, one more, one more"):
        with HostRunner(engine, IO, RTX, runtime_cache=file) as runner:
            assert runner._context.runtime_config.cache is not None
            runner.infer(feeds(1, 1))
        assert file.read_bytes() == stored
    file.write_bytes(b"of another GPU")
    with HostRunner(engine, IO, RTX, runtime_cache=file):
        pass
    assert file.read_bytes() == b"kernels: none, one more"
    assert sorted(tmp_path.iterdir()) == sorted([engine, file])


@pytest.mark.usefixtures("rtx_loggers")
def test_a_runtime_cache_that_cannot_be_written_still_frees_the_engine(
    engine: Path, tmp_path: Path
) -> None:
    runner = HostRunner(engine, IO, RTX, runtime_cache=tmp_path / "no" / "kernels.cache")
    runner.activate()
    with pytest.raises(EngineError, match="can't write the runtime cache"):
        runner.deactivate()
    assert runner._engine is None


def test_only_rtx_has_a_runtime_cache(engine: Path, tmp_path: Path) -> None:
    runner = HostRunner(engine, IO, FAKE, runtime_cache=tmp_path / "c")
    with pytest.raises(EngineError, match="has no runtime cache"):
        runner.activate()


def test_missing_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="can't read the engine"):
        HostRunner(tmp_path / "no.engine", IO, FAKE).activate()


def test_engine_of_another_graph(engine: Path) -> None:
    io = GraphSpec("decode", (X,), (Y, TensorSpec("score", "float32", ("B",))))
    with pytest.raises(EngineError, match=r"missing \['score'\], unknown \['mask'\]"):
        HostRunner(engine, io, FAKE).activate()


def test_engine_of_another_dtype(engine: Path) -> None:
    io = GraphSpec("prefill", (X, TensorSpec("mask", "int32", ("B", "S"))), (Y,))
    with pytest.raises(EngineError, match="tensor 'mask' must be int32, got bool"):
        HostRunner(engine, io, FAKE).activate()


def test_metadata(engine: Path) -> None:
    metadata = HostRunner(engine, IO, FAKE).metadata()
    assert (metadata.runtime, metadata.version, metadata.graph) == ("fake", "1.0", "prefill")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_activation_says_so(engine: Path) -> None:
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        TensorRtRunner(engine, IO, FAKE).activate()


def test_without_the_module_activation_says_so(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckv_export.engine.backends.available", dict)
    with pytest.raises(MissingDependency, match="tensorrt_rtx"):
        TensorRtRunner(engine, IO).activate()


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.skipif(not torch.cuda.is_available(), reason="running an engine needs a GPU")
def test_engine_computes_what_numpy_does(projection, tmp_path: Path) -> None:
    backend = load(None)
    out = tmp_path / "prefill.engine"
    build_engine(projection.request(targets=("current",)), backend, out)
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    weights = np.arange(32, dtype=np.float32).reshape(8, 4)
    with TensorRtRunner(out, projection.spec, backend) as runner:
        y = runner.infer({"x": x, "event_mask": np.ones((2, 5), bool)})["y"]
        empty = runner.infer({"x": x[:, :0], "event_mask": np.ones((2, 0), bool)})["y"]
    np.testing.assert_allclose(y, x @ weights, rtol=1e-5, atol=1e-4)
    assert empty.shape == (2, 0, 4)

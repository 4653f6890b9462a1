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

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return shape[0] <= 4

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

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 0), (1, 6), (4, 40)]

    def create_execution_context(self) -> FakeContext:
        return self.context


class FakeRuntime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        if plan != b"an engine":
            self.logger.log(Severity.ERROR, "Error Code 1: Serialization (magic tag is wrong)")
            return None
        return FakeEngine(self.logger)


FAKE = Backend(
    "fake",
    SimpleNamespace(ILogger=FakeLogger, Runtime=FakeRuntime),  # type: ignore[arg-type]
    "1.0",
)


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

"""Engines run by TensorRT or TensorRT for RTX, with memory and stream from torch.

One runner holds one execution context and one CUDA stream: use it from one thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ckv_export.contract import GraphSpec, TensorSpec
from ckv_export.engine.backends import Backend, load
from ckv_export.engine.loading import BundleEngine
from ckv_export.engine.messages import Messages, listen
from ckv_export.engine.network import DTYPES
from ckv_export.engine.rtx_runtime import RuntimeCache, require_valid
from ckv_export.errors import EngineError
from ckv_export.manifest import EngineEntry, Manifest
from ckv_export.runtimes.base import Array, Arrays, Runner, RunnerMetadata


class CudaMemory:
    """Device buffers and the stream that fills them; `EngineError` without a usable GPU.

    Every buffer has one element at least: TensorRT takes no null address, not even for a
    tensor without elements (no history, no appended events).
    """

    device = "cuda"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise EngineError(
                "running an engine needs an NVIDIA GPU and a CUDA build of torch: there is no GPU "
                f"here that torch {torch.__version__} can use"
            )
        new_stream: Any = torch.cuda.Stream  # its constructor has no annotations
        self._stream = new_stream()

    @property
    def handle(self) -> int:
        """Address of the CUDA stream."""
        return int(self._stream.cuda_stream)

    def on_stream(self) -> AbstractContextManager[Any]:
        """Order torch's copies and allocations on the runner's stream within the block."""
        return torch.cuda.stream(self._stream)

    def upload(self, array: Array) -> torch.Tensor:
        """Copy a host array of any shape into a new flat buffer."""
        buffer = self.allocate(array.size, array.dtype.name)
        flat = np.require(array, requirements=["C", "W"]).reshape(-1)
        buffer[: array.size].copy_(torch.from_numpy(flat))
        return buffer

    def allocate(self, elements: int, dtype: str) -> torch.Tensor:
        """Make a flat buffer of `elements` (numpy dtype name), one at least."""
        return torch.empty(max(elements, 1), dtype=getattr(torch, dtype), device=self.device)

    def download(self, buffer: torch.Tensor, shape: tuple[int, ...]) -> Array:
        """Wait for the stream, then copy a flat buffer's first elements to an array of `shape`."""
        array: Array = buffer[: math.prod(shape)].cpu().numpy().reshape(shape)
        return array


class TensorRtRunner(Runner):
    """A serialized engine at `path` whose inputs and outputs are those of `io`.

    `backend`: the module that built it, as its manifest says; None for the preferred one;
    `bundle`: the manifest's word on it, checked before it is loaded; `runtime_cache`: file of
    kernels that TensorRT for RTX compiles for this GPU, read and written. Activation raises
    `MissingDependency` without the module, and `EngineError` without a GPU, or for an engine that
    this module or GPU can't run or that isn't of this graph.
    """

    def __init__(
        self,
        path: Path,
        io: GraphSpec,
        backend: Backend | None = None,
        *,
        bundle: BundleEngine | None = None,
        runtime_cache: Path | None = None,
    ) -> None:
        super().__init__(io)
        self.path = path
        self._given = backend
        self._bundle = bundle
        self._kernels = RuntimeCache(runtime_cache) if runtime_cache else None
        self._profile = 0
        self._memory: Any = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None

    @classmethod
    def of_bundle(
        cls, folder: Path, manifest: Manifest, entry: EngineEntry, runtime_cache: Path | None = None
    ) -> TensorRtRunner:
        """A runner of a bundle's engine, which must be exactly what its manifest says."""
        bundle = BundleEngine(folder, manifest, entry)
        io = manifest.graph(entry.graph)
        backend = load(entry.backend)
        return cls(bundle.path, io, backend, bundle=bundle, runtime_cache=runtime_cache)

    @property
    def backend(self) -> Backend:
        """The module that runs the engine, loaded on first use."""
        self._given = self._given or load(None)
        return self._given

    def _activate(self) -> None:
        try:
            self._load()
        except BaseException:
            self._deactivate()
            raise

    def _load(self) -> None:
        backend = self.backend
        if self._kernels is not None:
            self._kernels.require_supported(backend)
        if self._bundle is not None:
            self._bundle.prepare(backend)
        self._memory = self._open_memory()
        with listen(backend) as (logger, messages):
            self._runtime = backend.module.Runtime(logger)
            if self._bundle is not None and self._bundle.host_code:
                # Its hash has just been verified: this is the code that was built.
                self._runtime.engine_host_code_allowed = True
            self._engine = self._deserialize(messages)
            self._check_engine()
            self._context = self._new_context()
            if self._context is None:
                raise self._failure("can't prepare", messages)
            self._profile = 0

    def _new_context(self) -> Any:
        if self._kernels is None:
            return self._engine.create_execution_context()
        return self._kernels.new_context(self._engine)

    def _deactivate(self) -> None:
        try:
            if self._kernels is not None:
                self._kernels.save()
        finally:
            # In this order: a context must not outlive its engine, nor an engine its runtime.
            self._context = None
            self._engine = None
            self._runtime = None
            self._memory = None

    def _infer(self, feeds: Mapping[str, Array]) -> Arrays:
        with listen(self.backend) as (_, messages), self._memory.on_stream():
            self._choose_profile(feeds, messages)
            inputs = [self._bind_input(t, feeds[t.name], messages) for t in self.io.inputs]
            outputs = {t.name: self._bind_output(t) for t in self.io.outputs}
            if not self._context.execute_async_v3(self._memory.handle):
                raise self._failure("can't run", messages)
            # Held until here, or torch would hand an input's memory out to an output.
            inputs.clear()
            return {n: self._memory.download(buffer, s) for n, (buffer, s) in outputs.items()}

    def _describe(self) -> RunnerMetadata:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cuda"
        return RunnerMetadata(self.backend.name, self.backend.version, gpu, self.io.name)

    def _open_memory(self) -> CudaMemory:
        return CudaMemory()

    def _deserialize(self, messages: Messages) -> Any:
        try:
            plan = self.path.read_bytes()
        except OSError as error:
            raise EngineError(f"can't read the engine {self.path}: {error}") from error
        if self.backend.is_rtx:
            require_valid(self._runtime, plan, self.path, self.backend)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failure("can't load", messages)
        return engine

    def _check_engine(self) -> None:
        names = {
            self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)
        }
        wanted = {tensor.name for tensor in self.io.tensors()}
        if names != wanted:
            raise EngineError(
                f"{self.path} is no {self.io.name} engine of this model: tensors missing "
                f"{sorted(wanted - names)}, unknown {sorted(names - wanted)}"
            )
        for tensor in self.io.tensors():
            found = self._engine.get_tensor_dtype(tensor.name).name
            if found != DTYPES[tensor.dtype]:
                raise EngineError(
                    f"{self.path}: tensor {tensor.name!r} must be {tensor.dtype}, "
                    f"got {found.lower()}"
                )

    def _choose_profile(self, feeds: Mapping[str, Array], messages: Messages) -> None:
        """Take the first profile that all inputs fit; where none does, the last one complains."""
        count = self._engine.num_optimization_profiles
        fitting = (i for i in range(count) if self._fits(feeds, i))
        chosen = next(fitting, self._profile)
        if chosen == self._profile:
            return
        if not self._context.set_optimization_profile_async(chosen, self._memory.handle):
            raise self._failure(f"can't switch to profile {chosen}", messages)
        self._profile = chosen

    def _fits(self, feeds: Mapping[str, Array], profile: int) -> bool:
        for tensor in self.io.inputs:
            smallest, _, largest = self._range(tensor.name, profile)
            shape = feeds[tensor.name].shape
            if not all(a <= n <= b for a, n, b in zip(smallest, shape, largest, strict=True)):
                return False
        return True

    def _range(self, name: str, profile: int) -> Any:
        return self._engine.get_tensor_profile_shape(name, profile)

    def _bind_input(self, tensor: TensorSpec, array: Array, messages: Messages) -> torch.Tensor:
        if not self._context.set_input_shape(tensor.name, tuple(array.shape)):
            smallest, _, largest = self._range(tensor.name, self._profile)
            raise self._failure(
                f"takes input {tensor.name!r} from {list(smallest)} to {list(largest)}, "
                f"got {list(array.shape)}",
                messages,
            )
        buffer: torch.Tensor = self._memory.upload(array)
        self._context.set_tensor_address(tensor.name, buffer.data_ptr())
        return buffer

    def _bind_output(self, tensor: TensorSpec) -> tuple[torch.Tensor, tuple[int, ...]]:
        shape = tuple(int(size) for size in self._context.get_tensor_shape(tensor.name))
        if min(shape, default=0) < 0:
            raise EngineError(
                f"{self.path}: the shape of output {tensor.name!r} does not follow from the "
                f"inputs, got {list(shape)}"
            )
        buffer: torch.Tensor = self._memory.allocate(math.prod(shape), tensor.dtype)
        self._context.set_tensor_address(tensor.name, buffer.data_ptr())
        return buffer, shape

    def _failure(self, what: str, messages: Messages) -> EngineError:
        reason = messages.first_error()
        detail = f": {reason}" if reason else ""
        return EngineError(f"{self.backend.label} {what} ({self.path}){detail}")

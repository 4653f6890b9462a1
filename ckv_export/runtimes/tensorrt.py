"""Engines run by TensorRT or TensorRT for RTX, with memory and stream from torch.

One runner has one CUDA stream, and an execution context for each set of shapes that it has met of
late, with buffers that stay: use it from one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ckv_export.contract import GraphSpec, TensorSpec
from ckv_export.engine.backends import Backend, load
from ckv_export.engine.loading import BundleEngine
from ckv_export.engine.messages import Messages, listen
from ckv_export.engine.network import DTYPES
from ckv_export.engine.rtx_runtime import RuntimeCache, new_context, require_valid
from ckv_export.errors import EngineError, reason
from ckv_export.manifest import EngineEntry, Manifest
from ckv_export.runtimes.base import Array, Arrays, Feed, Feeds, Placed, Runner, RunnerMetadata
from ckv_export.runtimes.cuda_memory import CudaMemory
from ckv_export.runtimes.device_call import CaptureFailed, DeviceCall, DeviceCalls


class TensorRtRunner(Runner):
    """A serialized engine at `path` whose inputs and outputs are those of `io`.

    `backend`: the module that built it, as its manifest says; None for the preferred one;
    `bundle`: the manifest's word on it, checked before it is loaded; `runtime_cache`: file of
    kernels that TensorRT for RTX compiles for this GPU, read and written; `cuda_graphs`: from the
    second call of a set of shapes on, all its work is put on the GPU in one piece. Activation
    raises `MissingDependency` without the module, and `EngineError` without a GPU, or for an engine
    that this module or GPU can't run or that isn't of this graph.

    Inputs go through pinned memory to buffers that stay as long as their shapes are among the
    latest `device_call.KEPT`; the arrays returned are the caller's. A call waits once.
    """

    def __init__(
        self,
        path: Path,
        io: GraphSpec,
        backend: Backend | None = None,
        *,
        bundle: BundleEngine | None = None,
        runtime_cache: Path | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__(io)
        self.path = path
        self._given = backend
        self._bundle = bundle
        self._kernels = RuntimeCache(runtime_cache) if runtime_cache else None
        self._cuda_graphs = cuda_graphs
        self._profile = 0
        self._calls = DeviceCalls()
        self._memory: Any = None
        self._runtime: Any = None
        self._engine: Any = None
        self._scratch: Any = None

    @classmethod
    def of_bundle(
        cls,
        folder: Path,
        manifest: Manifest,
        entry: EngineEntry,
        runtime_cache: Path | None = None,
        cuda_graphs: bool = False,
    ) -> TensorRtRunner:
        """A runner of a bundle's engine, which must be exactly what its manifest says."""
        bundle = BundleEngine(folder, manifest, entry)
        return cls(
            bundle.path,
            manifest.graph(entry.graph),
            load(entry.backend),
            bundle=bundle,
            runtime_cache=runtime_cache,
            cuda_graphs=cuda_graphs,
        )

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
            with self._running():
                self._scratch = self._memory.on_device(self._engine.device_memory_size_v2, "uint8")
            self._profile = 0
            if self._new_context() is None:
                raise self._failure("can't prepare", messages)

    def _deactivate(self) -> None:
        try:
            if self._kernels is not None:
                self._kernels.save()
        finally:
            # In this order: a graph must not outlive its context, a context its engine, nor an
            # engine its runtime.
            self._calls = DeviceCalls()
            self._engine = None
            self._runtime = None
            self._scratch = None
            self._memory = None

    def _infer(self, feeds: Feeds) -> Arrays:
        with self._running() as messages:
            return self._call(feeds, messages).run(feeds)

    def _upload(self, feeds: Feeds) -> None:
        with self._running() as messages:
            self._call(feeds, messages).upload(feeds)

    def _place(self, arrays: Mapping[str, Array]) -> dict[str, Feed]:
        with self._running():
            placed: dict[str, Feed] = {}
            for name, array in arrays.items():
                host = self._memory.on_host(array.size, array.dtype.name)
                np.copyto(host.numpy()[: array.size].reshape(array.shape), array)
                buffer = self._memory.on_device(array.size, array.dtype.name)
                self._memory.copy(host, buffer)
                self._memory.wait()
                placed[name] = Placed(array.shape, array.dtype, buffer)
            return placed

    def _describe(self) -> RunnerMetadata:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cuda"
        return RunnerMetadata(self.backend.name, self.backend.version, gpu, self.io.name)

    def _open_memory(self) -> CudaMemory:
        return CudaMemory()

    def _deserialize(self, messages: Messages) -> Any:
        try:
            plan = self.path.read_bytes()
        except OSError as error:
            raise EngineError(f"can't read the engine {self.path}: {reason(error)}") from error
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

    @contextmanager
    def _running(self) -> Iterator[Messages]:
        """Work on the stream; what torch or CUDA raises becomes an `EngineError`."""
        with listen(self.backend) as (_, messages), self._memory.on_stream():
            try:
                yield messages
            except CaptureFailed as error:
                what = "can't be captured in a CUDA graph, open the runner with cuda_graphs=False"
                raise self._failure(what, messages, error) from error
            except RuntimeError as error:
                raise self._failure("can't run", messages, error) from error

    def _call(self, feeds: Feeds, messages: Messages) -> DeviceCall:
        inputs = [feeds[tensor.name] for tensor in self.io.inputs]
        return self._calls.get(inputs, lambda: self._new_call(feeds, messages))

    def _new_call(self, feeds: Feeds, messages: Messages) -> DeviceCall:
        """A call in a context of its own: a captured graph allows no other shapes in it."""
        context = self._new_context()
        if context is None:
            raise self._failure("can't prepare", messages)
        self._choose_profile(context, feeds, messages)
        captured = self._cuda_graphs and not self.backend.is_rtx  # that captures by itself
        call = DeviceCall(self._memory, context, self._enqueue, captured)
        try:
            for tensor in self.io.inputs:
                self._set_shape(context, tensor, feeds[tensor.name], messages)
                call.bind_input(tensor, feeds[tensor.name])
            for tensor in self.io.outputs:
                call.bind_output(tensor, self._output_shape(context, tensor))
        except BaseException:
            call.release()
            raise
        return call

    def _new_context(self) -> Any:
        """A context in the runner's scratch memory: all run on one stream, one after another."""
        if self.backend.is_rtx:
            context = new_context(self._engine, self.backend, self._kernels, self._cuda_graphs)
        else:
            strategies = self.backend.module.ExecutionContextAllocationStrategy
            context = self._engine.create_execution_context(strategies.USER_MANAGED)
        if context is not None:
            size = self._engine.device_memory_size_v2
            context.set_device_memory(self._scratch.data_ptr(), size)
        return context

    def _choose_profile(self, context: Any, feeds: Feeds, messages: Messages) -> None:
        """Take the first profile that all inputs fit; where none does, the last one complains."""
        count = self._engine.num_optimization_profiles
        fitting = (i for i in range(count) if self._fits(feeds, i))
        chosen = next(fitting, self._profile)
        # Which one a new context begins with depends on the version.
        switch = context.active_optimization_profile != chosen
        if switch and not context.set_optimization_profile_async(chosen, self._memory.handle):
            raise self._failure(f"can't switch to profile {chosen}", messages)
        self._profile = chosen

    def _fits(self, feeds: Feeds, profile: int) -> bool:
        for tensor in self.io.inputs:
            smallest, _, largest = self._range(tensor.name, profile)
            shape = feeds[tensor.name].shape
            if not all(a <= n <= b for a, n, b in zip(smallest, shape, largest, strict=True)):
                return False
        return True

    def _range(self, name: str, profile: int) -> Any:
        return self._engine.get_tensor_profile_shape(name, profile)

    def _set_shape(self, context: Any, tensor: TensorSpec, feed: Feed, messages: Messages) -> None:
        if not context.set_input_shape(tensor.name, tuple(feed.shape)):
            smallest, _, largest = self._range(tensor.name, self._profile)
            raise self._failure(
                f"takes input {tensor.name!r} from {list(smallest)} to {list(largest)}, "
                f"got {list(feed.shape)}",
                messages,
            )

    def _output_shape(self, context: Any, tensor: TensorSpec) -> tuple[int, ...]:
        shape = tuple(int(size) for size in context.get_tensor_shape(tensor.name))
        if min(shape, default=0) < 0:
            raise EngineError(
                f"{self.path}: the shape of output {tensor.name!r} does not follow from the "
                f"inputs, got {list(shape)}"
            )
        return shape

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._memory.handle):
            raise RuntimeError

    def _failure(
        self, what: str, messages: Messages, error: Exception | None = None
    ) -> EngineError:
        reason = messages.first_error() or str(error or "").partition("\n")[0]
        detail = f": {reason}" if reason else ""
        return EngineError(f"{self.backend.label} {what} ({self.path}){detail}")

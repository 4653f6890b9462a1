"""ONNX files run by ONNX Runtime."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ckv_export.contract import GraphSpec
from ckv_export.errors import ExportError, MissingDependency
from ckv_export.runtimes.base import Array, Arrays, Feed, Feeds, Placed, Runner, RunnerMetadata


def load_module() -> ModuleType:
    """The onnxruntime module; raises `MissingDependency` where it is not installed."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingDependency("onnxruntime", "running ONNX graphs", "cpu") from error


CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

# TF32 flips router rows. What TensorRT leaves over runs on the GPU too.
_PROVIDERS: dict[str, list[Any]] = {
    CUDA: [(CUDA, {"use_tf32": "0"})],
    TENSORRT: [TENSORRT, (CUDA, {"use_tf32": "0"})],
}


def _reason(error: Exception, provider: str) -> str:
    """Why a file can't be loaded; of an operator that is not there ONNX Runtime tells no more."""
    if provider == CPU and "NOT_IMPLEMENTED" in str(error):
        return (
            "it has no products of bf16 numbers on a CPU, so export with --precision fp16 or fp32 "
            f"what is to run there ({error})"
        )
    return str(error)


class OnnxRuntimeRunner(Runner):
    """An ONNX file in a session of one provider.

    `threads`: threads within one operator. They never spin while idle: spinning starves PyTorch's
    own threads on a machine with few cores. Activation raises `ExportError` where ONNX Runtime
    can't load the file, or would run it on the CPU instead of `provider`.

    The first session of a process decides for all of them, and for the thread that makes it,
    whether numbers below 1.2e-38 are zero. In ours they are: ONNX Runtime's softmax gives masked
    events such numbers, and with them Intel's processors take up to ten times as long.
    """

    def __init__(
        self,
        path: Path,
        io: GraphSpec,
        provider: str = CPU,
        threads: int | None = None,
    ) -> None:
        super().__init__(io)
        self.path, self.provider, self.threads = path, provider, threads
        self.session: Any = None

    def _activate(self) -> None:
        ort = load_module()
        options = ort.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        options.log_severity_level = 3
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        providers = _PROVIDERS.get(self.provider, [self.provider])
        try:
            source = self._source(options)
            session = ort.InferenceSession(source, options, providers=providers)
        except ExportError:
            raise
        except Exception as error:  # the binding raises several classes of its own
            raise ExportError(
                f"ONNX Runtime can't load {self.path.name}: {_reason(error, self.provider)}"
            ) from error
        if self.provider not in session.get_providers():
            raise ExportError(
                f"ONNX Runtime has no working {self.provider} here and fell back to "
                f"{', '.join(session.get_providers())}: see its own log for the library it misses"
            )
        self.session = session

    def _source(self, options: Any) -> str | bytes:
        """What the session is made from: a path, or a model in memory."""
        return str(self.path)

    def _deactivate(self) -> None:
        self.session = None

    def _infer(self, feeds: Feeds) -> Arrays:
        names = [t.name for t in self.io.outputs]
        bound = any(isinstance(feed, Placed) for feed in feeds.values())
        try:
            outputs = (
                self._run_bound(names, feeds) if bound else self.session.run(names, dict(feeds))
            )
        except Exception as error:  # as above
            raise ExportError(f"ONNX Runtime can't run {self.path.name}: {error}") from error
        return dict(zip(names, outputs, strict=True))

    def _run_bound(self, names: list[str], feeds: Feeds) -> list[Array]:
        binding = self.session.io_binding()
        for name, feed in feeds.items():
            if isinstance(feed, Placed):
                shape, kind = list(feed.shape), feed.dtype.type
                binding.bind_input(name, self._device, 0, kind, shape, feed.value.data_ptr())
            else:
                binding.bind_cpu_input(name, feed)
        for name in names:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        outputs: list[Array] = binding.copy_outputs_to_cpu()
        return outputs

    @property
    def _device(self) -> str:
        return "cpu" if self.provider == CPU else "cuda"

    def _place(self, arrays: Mapping[str, Array]) -> dict[str, Feed]:
        return {name: self._sent(array) for name, array in arrays.items()}

    def _upload(self, feeds: Feeds) -> None:
        for feed in feeds.values():
            self._sent(feed)

    def _sent(self, feed: Feed) -> Feed:
        """An array's copy on the device, made when this returns."""
        if isinstance(feed, Placed) or self._device == "cpu" or not feed.size:
            return feed
        try:
            value = load_module().OrtValue.ortvalue_from_numpy(feed, self._device, 0)
        except Exception as error:  # as in `_activate`: too little memory there is one
            raise ExportError(
                f"ONNX Runtime can't send an input of {self.path.name} to {self._device}: {error}"
            ) from error
        return Placed(feed.shape, feed.dtype, value)

    def _describe(self) -> RunnerMetadata:
        device = self.provider.removesuffix("ExecutionProvider").lower()
        return RunnerMetadata("onnxruntime", load_module().__version__, device, self.io.name)

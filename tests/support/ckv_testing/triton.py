"""Clients of a Triton server, and a stand-in for its ONNX Runtime backend."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ckv_export.runtimes.base import Array
from ckv_export.triton.config import FILE_NAME, parse_config

_TYPES = {"int32": "INT32", "float32": "FP32", "bool": "BOOL", "object": "BYTES"}

# The server of the tests has no ONNX Runtime backend. This one has the same configuration but for
# the backend's name, so that shapes, reshapes, warm-up and calls between models are Triton's own.
_STAND_IN = """
import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.outputs = [o["name"] for o in json.loads(args["model_config"])["output"]]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = str(Path(__file__).parent / "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options)
        self.ranks = {i.name: len(i.shape) for i in self.session.get_inputs()}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        feeds = {t.name(): np.array(t.as_numpy()) for t in request.inputs()}
        for name, array in feeds.items():
            assert array.ndim == self.ranks[name], (name, array.shape)
        found = self.session.run(self.outputs, feeds)
        tensors = [pb_utils.Tensor(n, a) for n, a in zip(self.outputs, found)]
        return pb_utils.InferenceResponse(tensors)
"""


def stand_in(model: Path) -> None:
    """Let the Python backend run an ONNX model of a repository."""
    config = parse_config((model / FILE_NAME).read_text())
    assert config.backend == "onnxruntime"
    config.backend, config.platform, config.default_model_filename = "python", "", ""
    (model / FILE_NAME).write_text(str(config))
    (model / "1" / "model.py").write_text(_STAND_IN)


class Client:
    """One connection, "http" or "grpc"."""

    def __init__(self, protocol: str, port: int) -> None:
        self.module = importlib.import_module(f"tritonclient.{protocol}")
        self.client: Any = self.module.InferenceServerClient(f"127.0.0.1:{port}")

    def score(
        self,
        model: str,
        user: str | list[str],
        inputs: Mapping[str, Array],
        append_id: str | None = None,
        extra: Mapping[str, Array] | None = None,
    ) -> tuple[Array, Array]:
        """Scores and event counts; `inputs` of one user (a text), or with a batch axis (a list)."""
        users = [user] if isinstance(user, str) else user
        arrays = {
            n: (np.asarray(a)[None] if isinstance(user, str) else a) for n, a in inputs.items()
        }
        arrays = {n: a[:, None] if a.ndim == 1 else a for n, a in arrays.items()}
        arrays |= {"user_id": _texts(users)} | dict(extra or {})
        if append_id is not None:
            arrays["append_id"] = _texts([append_id] * len(users))
        made = []
        for name, array in arrays.items():
            array = np.ascontiguousarray(array)
            made.append(self.module.InferInput(name, array.shape, _TYPES[str(array.dtype)]))
            made[-1].set_data_from_numpy(array)
        result = self.client.infer(model, made)
        return result.as_numpy("score"), result.as_numpy("events")[:, 0]

    def close(self) -> None:
        self.client.close()


def _texts(values: list[str]) -> Array:
    return np.array([[v.encode()] for v in values], object)

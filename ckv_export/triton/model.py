"""The orchestrating model, run by Triton's Python backend.

Inputs, B users each: ``user_id`` [B, 1], ``append_<f>`` [B, T, ..] with ``append_mask`` [B, T]
where users have done different numbers of things, ``candidate_<f>`` [B, C, ..], ``user_<f>``.
``append_id`` [B, 1] names an append, so that a client may send it again after an error; "" names
none. An error of one user is the whole request's, while the appends of the others have happened.
Outputs: ``score`` [B, C], and ``events`` [B, 1], how many events the user has had.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ckv_export.contract import GraphSpec
from ckv_export.errors import BundleError, CkvError, ExportError, InputError, StoreError
from ckv_export.manifest import FileEntry, Manifest, read_manifest
from ckv_export.runtimes.base import Array, Arrays
from ckv_export.serving import Answer, Decode, Request, Scorer, ScorerOptions, in_process
from ckv_export.store import Store, open_store, token_of
from ckv_export.triton.settings import BUNDLE, STORE_VARIABLE, Settings


class TritonPythonModel:
    """What Triton's Python backend looks for."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open store and decode graph; what it raises, Triton shows beside the model's name."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = Settings.of({n: p["string_value"] for n, p in parameters.items()})
        folder = Path(args["model_repository"]) / args["model_version"] / BUNDLE
        manifest = read_manifest(folder)
        self.store = open_store(_store_address(settings))
        options = ScorerOptions(settings.user_dtype, settings.max_events)
        decode = _decode(folder, manifest, settings)
        self.scorer = Scorer(manifest, self.store, decode, options, settings.graph)
        self.metrics = Metrics(self.store, args["model_name"])
        if settings.decode_model is None:
            self.scorer.warm_up()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests together, each with scores or an error of its own."""
        parsed = [self._parsed(request) for request in requests]
        rows = [row for some in parsed if not isinstance(some, CkvError) for row in some]
        answers = iter(self.scorer.score(rows))
        responses = []
        for some in parsed:
            if isinstance(some, CkvError):
                responses.append(_refusal(some))
            else:
                responses.append(_response([next(answers) for _ in some]))
        self.metrics.update()
        return responses

    def finalize(self) -> None:
        """Close the store."""
        self.store.close()

    def _parsed(self, request: Any) -> list[Request] | CkvError:
        try:
            tensors = {t.name(): t.as_numpy() for t in request.inputs()}
            names = _texts(tensors.pop("user_id"))
            given = tensors.pop("append_id", None)
            named = [""] * len(names) if given is None else _texts(given)
            tokens = [token_of(name) if name else None for name in named]
            mask = tensors.pop("append_mask", None)
            return [
                Request(name, self._row(tensors, mask, row), tokens[row])
                for row, name in enumerate(names)
            ]
        except UnicodeDecodeError as error:
            return InputError(f"user_id and append_id must be texts in UTF-8: {error}")
        except InputError as error:
            return error

    def _row(self, tensors: Arrays, mask: Array | None, row: int) -> Arrays:
        inputs = {}
        for name, values in tensors.items():
            array = values[row]
            if mask is not None and name.startswith("append_"):
                if mask.shape[:2] != values.shape[:2]:
                    raise InputError(
                        f"append_mask has the shape {list(mask.shape)}, {name} "
                        f"{list(values.shape)}: both must begin with [B, T]"
                    )
                array = array[mask[row]]
            tensor = self.scorer.check.tensors.get(name)
            scalar = tensor is not None and not tensor.axes
            inputs[name] = array.reshape(()) if scalar and array.size == 1 else array
        return inputs


class Metrics:
    """The store's counters among the server's own metrics, where it has any."""

    def __init__(self, store: Store, model: str) -> None:
        self.store = store
        self.last = asdict(store.counters())
        self.metrics: dict[str, Any] = {}
        if not hasattr(pb_utils, "MetricFamily"):
            return
        for name in self.last:
            family = pb_utils.MetricFamily(
                name=f"ckv_store_{name}",
                description=f"User store: {name.replace('_', ' ')}",
                kind=pb_utils.MetricFamily.COUNTER,
            )
            self.metrics[name] = family.Metric(labels={"model": model})
            self.metrics[f"{name} family"] = family

    def update(self) -> None:
        """Add what has happened since the last time."""
        now = asdict(self.store.counters())
        for name, value in now.items():
            if name in self.metrics and value > self.last[name]:
                self.metrics[name].increment(value - self.last[name])
        self.last = now


def _store_address(settings: Settings) -> str:
    """The environment's, which the backend's Python has decoded as ASCII, or the repository's."""
    given = os.environ.get(STORE_VARIABLE)
    return settings.store if given is None else os.fsencode(given).decode(errors="surrogateescape")


def _texts(tensor: Array) -> list[str]:
    values: list[bytes] = tensor.reshape(-1).tolist()
    return [value.decode() for value in values]


def _response(answers: Sequence[Answer | CkvError]) -> Any:
    error = next((answer for answer in answers if isinstance(answer, CkvError)), None)
    if error is not None:
        return _refusal(error)
    good = [answer for answer in answers if isinstance(answer, Answer)]
    scores = np.stack([answer.scores for answer in good])
    events = np.array([[answer.events] for answer in good], np.int64)
    tensors = [pb_utils.Tensor("score", scores), pb_utils.Tensor("events", events)]
    return pb_utils.InferenceResponse(tensors)


def _refusal(error: CkvError) -> Any:
    codes = pb_utils.TritonError
    code = codes.INTERNAL
    if isinstance(error, InputError):
        code = codes.INVALID_ARG
    elif isinstance(error, StoreError):
        code = codes.UNAVAILABLE
    return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), code))


def _decode(folder: Path, manifest: Manifest, settings: Settings) -> Decode:
    exported = manifest.graph(settings.graph)
    # What is the same for all users is a constant of the graph here: item table, pools.
    inputs = tuple(t for t in exported.inputs if t.axes[:1] == ("B",))
    io = GraphSpec(exported.name, inputs, exported.outputs)
    if settings.decode_model is not None:
        return _of_the_server(settings.decode_model, io)
    path = folder / f"{settings.graph}.onnx"
    wanted = manifest.files.get(path.name)
    if io == exported and FileEntry.of(path) != wanted:
        raise BundleError(f"{path} is not the file that was exported, its hash differs")
    return in_process(path, io, threads=settings.threads)


def _of_the_server(model: str, io: GraphSpec) -> Decode:
    """Decode by another model of the same server."""
    names = [t.name for t in io.outputs]

    def decode(feeds: Arrays) -> Arrays:
        request = pb_utils.InferenceRequest(
            model_name=model,
            requested_output_names=names,
            inputs=[_tensor(name, array) for name, array in feeds.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise ExportError(f"the model {model} failed: {response.error().message()}")
        outputs = (pb_utils.get_output_tensor_by_name(response, name) for name in names)
        # A copy: the memory is the response's.
        return {t.name(): np.array(t.as_numpy()) for t in outputs}

    return decode


def _tensor(name: str, array: Array) -> Any:
    with_axis = array[:, None] if array.ndim == 1 else array
    return pb_utils.Tensor(name, np.ascontiguousarray(with_axis))

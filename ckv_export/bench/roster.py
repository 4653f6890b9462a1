"""Which ways there are to serve a bundle's model with its checkpoint's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ckv_export.bench.as_trained import TRAINED_KINDS, TrainedDecode
from ckv_export.bench.full_cache import FullDecodeGraph, full_decode_io, whole_cache
from ckv_export.bench.stored import Layout, full_cache_spec
from ckv_export.bench.ways import LeftOut, Way
from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.contract import FEATURES, EventForm, GraphSpec, ModelSpec
from ckv_export.deploy.item_rows import look_up
from ckv_export.errors import CheckpointError, CkvError, ExportError
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.manifest import Manifest
from ckv_export.model.base import CollectiveModel
from ckv_export.model.events import EventEmbedding
from ckv_export.model.fingerprint import fingerprint
from ckv_export.model.reference import Reference
from ckv_export.model.registry import build_model, build_reference
from ckv_export.onnx_export.export import export_graph
from ckv_export.onnx_export.save import save_models
from ckv_export.runtimes.base import Array, Arrays, Feeds
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner
from ckv_export.runtimes.torch import TorchRunner

ON_CUDA = "PyTorch and full KV on cuda"
"""All that `cuda_ways` adds where there is a GPU."""

FULL_DECODE = "decode_full.onnx"
"""The file in a scratch folder that `export_full_decode` writes."""

_NEED_WEIGHTS = (
    "PyTorch eager, compact cache",
    "torch.compile, compact cache",
    "PyTorch eager, no cache",
    "ONNX Runtime, full KV held",
    "ONNX Runtime, full KV fetched",
)
_AS_TRAINED = ("PyTorch eager, as trained", "torch.compile, as trained")


class CompiledRunner(TorchRunner):
    """A split module under torch.compile, a program for each shape; `ExportError` if it fails.

    `mode`: torch's own, None for its default.
    """

    def __init__(
        self, module: nn.Module, io: GraphSpec, device: str = "cpu", mode: str | None = None
    ) -> None:
        compiled: Any = torch.compile(module, dynamic=False, mode=mode)
        super().__init__(compiled, io, device)

    def _infer(self, feeds: Feeds) -> Arrays:
        try:
            return super()._infer(feeds)
        except CkvError:
            raise
        except Exception as error:  # a missing C++ compiler is several classes of error
            raise ExportError(f"torch.compile failed: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Weights:
    """The model of a bundle with its weights, split and as the reference."""

    model: CollectiveModel
    reference: Reference


def load_weights(
    path: Path, manifest: Manifest, weights: str | None = None, params: str | None = None
) -> Weights:
    """Read the checkpoint a bundle was made from; raises `CheckpointError` for any other."""
    checkpoint = load_checkpoint(path, weights=weights, params=params)
    identity = fingerprint(checkpoint.spec, checkpoint.state)
    if identity != manifest.fingerprint:
        raise CheckpointError(
            f"{path} has the fingerprint {identity[:16]}, the bundle was exported from "
            f"{manifest.fingerprint[:16]}: give the checkpoint it was exported from"
        )
    spec, state = checkpoint.spec, checkpoint.state
    if manifest.form.item_tensors(spec, "event") != FEATURES.item_tensors(spec, "event"):
        raise CheckpointError(
            "baselines need a bundle whose graphs take all features: this one was exported with "
            "--embeddings external or --item-features"
        )
    form = EventForm(item_key=manifest.form.item_key)
    model = build_model(spec, state, EventEmbedding(spec, state, form))
    if manifest.item_rows:
        look_up(model)
    return Weights(model, build_reference(spec, state))


def without_weights() -> list[LeftOut]:
    """The ways that `weighted_ways` would add."""
    reason = "its weights are in no bundle: give --checkpoint MODEL"
    return [LeftOut(name, reason) for name in (*_NEED_WEIGHTS, *_AS_TRAINED, ON_CUDA)]


def without_training_code(spec: ModelSpec) -> list[LeftOut]:
    """The ways that `weighted_ways` has for models of other kinds."""
    if spec.kind in TRAINED_KINDS:
        return []
    reason = f"{spec.kind} is trained on whole histories: its training code has no decode"
    return [LeftOut(name, reason) for name in _AS_TRAINED]


def weighted_ways(
    weights: Weights, first: Way, scratch: Path, threads: int, floats: str
) -> list[Way]:
    """PyTorch and uncompressed caches, with the weights of the bundle's checkpoint.

    `first`: the bundle's own way, whose prefill serves the full cache too; its decode graph must be
    in `scratch` (`export_full_decode`) before ways that load it are opened.
    """
    model, spec = weights.model, weights.model.spec
    torch.set_num_threads(threads)
    prefill, decode = PrefillGraph(model), DecodeGraph(model)
    eager = TorchRunner(prefill, prefill.io), TorchRunner(decode, decode.io)
    compiled = CompiledRunner(prefill, prefill.io), CompiledRunner(decode, decode.io)
    full_io = full_decode_io(decode.io, spec)
    full = OnnxRuntimeRunner(scratch / FULL_DECODE, full_io, threads=threads)
    whole = Layout(spec, full_cache_spec(spec), floats)

    def expand(cache: Mapping[str, Array]) -> Arrays:
        return whole_cache(model, cache)

    ways = [
        Way(_NEED_WEIGHTS[0], "compact", *eager, first.layout),
        Way(_NEED_WEIGHTS[1], "compact", *compiled, first.layout),
        Way(_NEED_WEIGHTS[2], "none", *eager, first.layout),
        Way(_NEED_WEIGHTS[3], "full, held", first.prefill, full, whole, expand),
        Way(_NEED_WEIGHTS[4], "full, fetched", first.prefill, full, whole, expand),
    ]
    if spec.kind in TRAINED_KINDS:
        trained = TrainedDecode(weights.reference)
        for name, runner in zip(_AS_TRAINED, (TorchRunner, CompiledRunner), strict=True):
            ways.append(Way(name, "compact", None, runner(trained, trained.io), first.layout))
    return ways


def export_full_decode(model: CollectiveModel, scratch: Path, ways: Sequence[Way]) -> None:
    """Write decode for the full cache into `scratch` if one of `ways` loads it."""
    path = scratch / FULL_DECODE
    if any(isinstance(w.decode, OnnxRuntimeRunner) and w.decode.path == path for w in ways):
        save_models({path.stem: export_graph(FullDecodeGraph(model))}, scratch)


def reference_scores(reference: Reference, inputs: Mapping[str, Array]) -> Array:
    """Scores [B, C] of the unsplit model for a request's inputs."""
    given = {name: torch.from_numpy(np.asarray(array)) for name, array in inputs.items()}
    spec = reference.spec
    history = {
        f.name: torch.cat(
            [
                given.get(f"history_{f.name}", given.get(f"event_{f.name}")),  # type: ignore[list-item]
                given[f"append_{f.name}"],
            ],
            dim=1,
        )
        for f in spec.item_features
    }
    mask = torch.cat([given["history_mask"], given["append_mask"]], dim=1)
    groups = [
        {n.removeprefix(p): t for n, t in given.items() if n.startswith(p)}
        for p in ("candidate_", "user_")
    ]
    with torch.inference_mode():
        return reference.score(history, mask, *groups).numpy()

"""Generated requests of given sizes for the graphs of a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ckv_export.bench.traffic import zipf_ids
from ckv_export.contract import FeatureSpec, GraphSpec, ModelSpec, TensorSpec
from ckv_export.errors import InputError
from ckv_export.runtimes.base import Array, Arrays, Feed, Feeds

_GROUPS = ("history", "append", "candidate", "user")
NOW = 1_750_000_000
MOST = 10**7
"""Of every size: more than any request holds, and few enough to count the bytes of."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of one call: B users, S history events, T appended ones, C candidates each."""

    batch: int = 1
    history: int = 1000
    appended: int = 1
    candidates: int = 100

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("history", 0), ("appended", 0), ("candidates", 1)):
            size = getattr(self, name)
            if not least <= size <= MOST:
                raise InputError(f"{name} must lie in {least} to {MOST:,}, got {size:,}")

    def axes(self, spec: ModelSpec) -> dict[str, int]:
        """The sizes by axis name."""
        sizes = {"B": self.batch, "S": self.history, "T": self.appended, "C": self.candidates}
        return sizes | {"K": spec.cached_events(self.history)}

    def replaced(self, **changes: int) -> Sizes:
        """The same sizes with some given anew."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Request:
    """Inputs of one call under the decode graph's names, all but ``cache_*`` and pools.

    `real`: events of each user's history that are no padding.
    """

    sizes: Sizes
    inputs: Arrays
    real: tuple[int, ...]

    def prefill_feeds(self, io: GraphSpec, spec: ModelSpec) -> Arrays:
        """What prefill takes to make this request's cache from nothing."""
        empty = {"B": self.sizes.batch, "K": 0}
        feeds: Arrays = {}
        for tensor in io.inputs:
            if tensor.name.startswith("event_"):
                feeds[tensor.name] = self._history(tensor.name.removeprefix("event_"))
            elif tensor.name.startswith("past_"):
                feeds[tensor.name] = np.zeros(tensor.shape(empty), np.dtype(tensor.dtype))
        return feeds

    def _history(self, name: str) -> Array:
        """A history input; one that decode doesn't take is kept beside it as ``event_*``."""
        return self.inputs.get(f"history_{name}", self.inputs.get(f"event_{name}"))  # type: ignore[return-value]

    def decode_feeds(self, io: GraphSpec, cache: Feeds) -> dict[str, Feed]:
        """What decode takes, with the cache of this request's users."""
        given: dict[str, Feed] = {**self.inputs, **cache}
        return {t.name: given[t.name] for t in io.inputs if t.name in given}

    def without_scoring(self) -> Request:
        """The same request with one candidate: what it costs to append alone."""
        inputs = {n: a[:, :1] if n.startswith("candidate_") else a for n, a in self.inputs.items()}
        cut = {n: np.ascontiguousarray(a) for n, a in inputs.items()}
        return Request(self.sizes.replaced(candidates=1), cut, self.real)


def draw_request(
    spec: ModelSpec,
    graphs: Mapping[str, GraphSpec],
    sizes: Sizes,
    rng: np.random.Generator,
    lengths: tuple[int, ...] | None = None,
) -> Request:
    """A request with Zipf ids; histories are full unless `lengths` says how long each is.

    Raises `InputError` for `lengths` of another number of users, or beyond what `sizes` holds.
    """
    real = (sizes.history,) * sizes.batch if lengths is None else lengths
    if len(real) != sizes.batch or not all(0 <= n <= sizes.history for n in real):
        raise InputError(
            f"lengths must be {sizes.batch} numbers in 0 to {sizes.history}, one for each user, "
            f"got {list(real)}"
        )
    mask = np.arange(sizes.history) >= sizes.history - np.array(real)[:, None]
    axes, features = sizes.axes(spec), {f.name: f for f in spec.features}
    inputs: Arrays = {}
    for tensor in _wanted(graphs):
        group, name = tensor.name.split("_", 1)
        shape = tensor.shape(axes)
        past = group in ("history", "event")
        if name == "mask":
            # By its group: as many may be appended as there are events of history.
            inputs[tensor.name] = mask if past else np.ones(shape, bool)
            continue
        array = _drawn(features.get(name), tensor, shape, rng)
        if past:
            array[~mask] = 0
        inputs[tensor.name] = array
    return Request(sizes, inputs, real)


def _wanted(graphs: Mapping[str, GraphSpec]) -> list[TensorSpec]:
    """Decode's inputs of a request, then what of an event only prefill takes."""
    decode = [t for t in graphs["decode"].inputs if t.name.split("_", 1)[0] in _GROUPS]
    known = {t.name for t in decode}
    extra = [
        t
        for t in graphs["prefill"].inputs
        if t.name.startswith("event_") and "history" + t.name.removeprefix("event") not in known
    ]
    return decode + extra


def _drawn(
    feature: FeatureSpec | None,
    tensor: TensorSpec,
    shape: tuple[int, ...],
    rng: np.random.Generator,
) -> Array:
    if feature is not None and feature.kind == "timestamp":
        return _times(tensor.name, shape, rng)
    if tensor.dtype == "float32":
        return rng.standard_normal(shape).astype(np.float32)
    return zipf_ids(feature.vocab_size if feature else 1, shape, rng)


def _times(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Rising seconds before `NOW` for a history, `NOW` for what comes after it."""
    if not name.startswith(("history_", "event_")):
        return np.full(shape, NOW, np.int32)
    gaps = rng.integers(1, 7200, shape).cumsum(-1)
    return (NOW - gaps[..., ::-1]).astype(np.int32)

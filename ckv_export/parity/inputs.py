"""Seeded inputs over the sizes where such models go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ckv_export.catalogue import Catalogue
from ckv_export.contract import FEATURES, EventForm, FeatureSpec, ModelSpec
from ckv_export.runtimes.base import Array, Arrays

# repeats: few items, one of them all zeros as padding is, make ties in every search; holes: what
# stands under the mask is not zero, so that the mask has to tell.
Fill = Literal["full", "ragged", "holes", "masked", "repeats"]

_LONG = 200
_FEW = 4
# As in the published models; the reference takes a quarter of a minute for twice as many of HSTU.
_LONGEST = 1000
_NEIGHBOURHOODS, _NEIGHBOURS = 8, 64


@dataclass(frozen=True)
class CaseSize:
    """Sizes of one case: `cached` events go through prefill, `appended` ones into decode."""

    name: str
    batch: int
    cached: int
    appended: int
    candidates: int
    fill: Fill = "ragged"


@dataclass(frozen=True)
class Case:
    """One request: inputs under the decode graph's names, but for the cache itself.

    ``history_<f>`` [B, S, ...], ``history_mask`` [B, S], ``append_<f>`` [B, T, ...],
    ``append_mask`` [B, T], ``candidate_<f>`` [B, C, ...], ``user_<f>`` [B, ...]. `labels` [B, C]:
    1 for a candidate that was clicked, where that is known.
    """

    name: str
    inputs: Arrays
    labels: Array | None = None

    @property
    def cached(self) -> int:
        """S, the events that go through prefill."""
        return int(self.inputs["history_mask"].shape[1])

    @property
    def appended(self) -> int:
        """T, the events given to decode."""
        return int(self.inputs["append_mask"].shape[1])


def case_sizes(spec: ModelSpec) -> Iterator[CaseSize]:
    """Histories around every boundary of `spec`: empty, one event, window, top-k, far beyond."""
    yield CaseSize("empty history", 2, 0, 0, 1)
    yield CaseSize("first event appended", 2, 0, 1, 3)
    yield CaseSize("one event", 3, 1, 0, 2, "full")
    yield CaseSize("one event, one appended", 3, 1, 1, 2)
    longest = 0
    for what, size in _boundaries(spec).items():
        longest = max(longest, size)
        for n in (size - 1, size, size + 1):
            yield CaseSize(f"{what} {n - size:+d}, nothing appended", 2, n, 0, 2)
            yield CaseSize(f"{what} {n - size:+d}, 1 of them appended", 2, n - 1, 1, 2, "full")
    beyond = longest + 7
    # All router logits of a case are in memory at once: users times events times pool rows.
    users = 4 if longest <= _LONG else 2
    yield CaseSize("long, 3 appended", users, beyond, 3, 9)
    yield CaseSize("long, all real", 1, beyond, 1, 33, "full")
    yield CaseSize("holes", users, beyond, 2, 16, "holes")
    yield CaseSize("nothing real", 2, beyond, 1, 3, "masked")
    yield CaseSize("repeated items", users, beyond, 4, 16, "repeats")
    yield CaseSize("more appended than cached", 2, 2, longest + 2, 2)
    if spec.layers_see_history:
        # Distances beyond the last that has a bias of its own.
        trained = min(spec.max_len, _LONGEST)
        yield CaseSize("longer than trained for", 1, trained + 2, 1, 1, "full")


def _boundaries(spec: ModelSpec) -> dict[str, int]:
    sizes = {"window": (spec.window or 9) - 1}
    if "topk" in spec.options:
        sizes["top-k"] = int(spec.options["topk"])
    # Of a history that a model is trained for, a larger window or top-k keeps everything.
    most = max(spec.max_len, _LONGEST)
    kept = {"longest": most} if max(sizes.values()) > most else {}
    kept |= {what: size for what, size in sizes.items() if size <= most}
    return {what: max(size, 3) for what, size in kept.items()}


def generate(spec: ModelSpec, seed: int, catalogue: Catalogue | None = None) -> list[Case]:
    """The cases of `case_sizes`, filled from a seeded generator.

    With a catalogue, an item's other features are those it has there.
    """
    rng = np.random.default_rng(seed)
    return [generate_case(spec, size, rng, catalogue) for size in case_sizes(spec)]


def generate_case(
    spec: ModelSpec,
    size: CaseSize,
    rng: np.random.Generator,
    catalogue: Catalogue | None = None,
) -> Case:
    """One case: histories with id 0 where masked but for "holes", uniform ids elsewhere."""
    total = size.cached + size.appended
    mask = _mask(size, total, rng)
    padding = ~mask & (size.fill != "holes")
    few = rng.integers(0, _FEW, (size.batch, total)) if size.fill == "repeats" else None
    inputs: Arrays = {}
    for feature in spec.embedded_item_features:
        events = _events(feature, (size.batch, total), rng, few)
        events[padding] = 0
        inputs[f"history_{feature.name}"] = events[:, : size.cached]
        inputs[f"append_{feature.name}"] = events[:, size.cached :]
        candidates = _events(feature, (size.batch, size.candidates), rng)
        inputs[f"candidate_{feature.name}"] = candidates
    inputs |= generate_user(spec, FEATURES, size.batch, rng)
    if catalogue is not None:
        _look_up(inputs, catalogue)
    if spec.timestamp is not None:
        times = _times(size, mask, rng)
        for group, part in zip(("history", "append", "candidate"), times, strict=True):
            inputs[f"{group}_{spec.timestamp.name}"] = part
    inputs["history_mask"] = mask[:, : size.cached]
    inputs["append_mask"] = mask[:, size.cached :]
    return Case(size.name, {name: np.ascontiguousarray(a) for name, a in inputs.items()})


def generate_user(spec: ModelSpec, form: EventForm, users: int, rng: np.random.Generator) -> Arrays:
    """User inputs of graphs of that form, drawn as those of a generated case."""
    if form.embeddings == "external":
        tensors = form.user_tensors(spec)
        return {t.name: _numbers(t.shape({"B": users}), rng) for t in tensors}
    return {f"user_{f.name}": _events(f, (users,), rng) for f in spec.user_features}


def _numbers(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def _look_up(inputs: Arrays, catalogue: Catalogue) -> None:
    for group in ("history", "append", "candidate"):
        ids = inputs[f"{group}_{catalogue.key}"]
        for name, values in catalogue.features.items():
            inputs[f"{group}_{name}"] = values[ids]


def _mask(size: CaseSize, total: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    shape = (size.batch, total)
    if size.fill == "full":
        return np.ones(shape, bool)
    if size.fill == "masked":
        return np.zeros(shape, bool)
    if size.fill == "holes":
        return rng.random(shape) < rng.random((size.batch, 1))
    real = rng.integers(0, total + 1, size.batch)
    real[0] = total
    return np.arange(total) >= total - real[:, None]


def _times(
    size: CaseSize, mask: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Rising seconds with gaps from none to weeks and one of years, many powers of two; masked: 0.

    They stay below 2**31 for several thousand events.
    """
    gaps = 2 ** rng.integers(0, 22, (size.batch, mask.shape[1] + 1)) - rng.integers(0, 2)
    gaps[rng.random(gaps.shape) < 0.1] = 0
    gaps[np.arange(size.batch), rng.integers(0, gaps.shape[1], size.batch)] = 2**27
    times = gaps.cumsum(1).astype(np.int32)
    candidates = np.repeat(times[:, -1:], size.candidates, axis=1)
    events = np.where(mask, times[:, :-1], 0).astype(np.int32)
    return events[:, : size.cached], events[:, size.cached :], candidates


def _ids(feature: FeatureSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Ids other than 0 (unless there is no other), the last one among those possible.

    Those of a large table come from a few neighbourhoods all over it: a table of gigabytes that is
    mapped from its file then stays there, but for those pages.
    """
    least, size = min(1, feature.vocab_size - 1), feature.vocab_size
    if size <= _NEIGHBOURHOODS * _NEIGHBOURS:
        return rng.integers(least, size, shape)
    starts = np.linspace(least, size - _NEIGHBOURS, _NEIGHBOURHOODS).astype(np.int64)
    return rng.choice(starts, shape) + rng.integers(0, _NEIGHBOURS, shape)


def _events(
    feature: FeatureSpec,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    few: NDArray[np.int64] | None = None,
) -> Array:
    """Values [*shape, *inner]; `few`, of that shape: which of `_FEW` items each event is of."""
    if few is not None:
        items = _events(feature, (_FEW,), rng)
        items[0] = 0
        return items[few]
    shape = (*shape, *feature.inner)
    if feature.dtype == "float32":
        return _numbers(shape, rng)
    ids = _ids(feature, shape, rng).astype(np.int32)
    if feature.kind == "sequence":
        lengths = rng.integers(0, feature.length + 1, (*shape[:-1], 1))
        ids[np.arange(feature.length) >= lengths] = 0
    return ids

"""Inputs and outputs of the graphs: names, dtypes, axes.

Axis names: B users, S history events, K cached events given to decode, T newly appended events,
C candidates per user, I items of a table. Histories are left-padded and right-aligned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ckv_export.contract.spec import FeatureSpec, ModelSpec, require, require_choice

Axis = str | int


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output: numpy dtype name and axes (a name where dynamic)."""

    name: str
    dtype: str
    axes: tuple[Axis, ...]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The axes with every name replaced by its size."""
        return tuple(sizes[a] if isinstance(a, str) else a for a in self.axes)


@dataclass(frozen=True)
class GraphSpec:
    """Inputs and outputs of one graph, in order."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def tensors(self) -> Iterator[TensorSpec]:
        """Inputs, then outputs."""
        yield from self.inputs
        yield from self.outputs


@dataclass(frozen=True)
class CacheSpec:
    """What is cached per event: row numbers and user parts of each shared or plain side."""

    layers: int
    tensors: tuple[tuple[str, str, int | None], ...]

    @classmethod
    def of(cls, spec: ModelSpec) -> CacheSpec:
        """The cache of `spec`: (suffix, dtype, width) each, width None for a row number."""
        tensors: list[tuple[str, str, int | None]] = []
        for side in ("k", "v"):
            if spec.attention.shared(side):
                tensors.append((f"{side}_index", "int32", None))
        for side in ("k", "v"):
            tensors.append((f"{side}_user", "float32", spec.attention.user_width(side)))
        return cls(spec.num_layers, tuple(tensors))

    def named(self, prefix: str, axis: str) -> tuple[TensorSpec, ...]:
        """The tensors as ``<prefix>_k_index`` [B, L, axis] and so on."""
        return tuple(
            TensorSpec(
                f"{prefix}_{suffix}",
                dtype,
                ("B", self.layers, axis) + (() if width is None else (width,)),
            )
            for suffix, dtype, width in self.tensors
        )


@dataclass(frozen=True)
class EventForm:
    """How graphs take an event, a candidate and a user.

    By default a tensor per feature. `embeddings` "external": their embeddings, looked up by a
    parameter server. `item_key`: the one item feature that is given; all others are constants of
    the graph, looked up by it. `pools`: None where pools are constants of the graph, otherwise the
    dtype of those that it takes as inputs.
    """

    embeddings: str = "inline"
    item_key: str | None = None
    pools: str | None = None

    def __post_init__(self) -> None:
        require_choice("embeddings", self.embeddings, ("inline", "external"))
        if self.pools is not None:
            require_choice("the dtype of pools as inputs", self.pools, ("float32", "float16"))
        require(
            self.embeddings == "inline" or self.item_key is None,
            "external embeddings and looked-up item features exclude each other: the graph takes "
            "embeddings or ids",
        )

    def item_tensors(self, spec: ModelSpec, prefix: str, *axes: Axis) -> list[TensorSpec]:
        """What stands for an event or candidate: ``<prefix>_<f>`` or ``<prefix>_embedding``."""
        if self.embeddings == "external":
            embedding = TensorSpec(f"{prefix}_embedding", "float32", (*axes, spec.d_event))
            return [embedding, *self._timestamp(spec, prefix, *axes)]
        given = (f for f in spec.item_features if self.gives(f))
        return [feature_tensor(prefix, f, *axes) for f in given]

    def history_tensors(self, spec: ModelSpec, prefix: str, *axes: Axis) -> list[TensorSpec]:
        """What stands for a past event beside its cache entries: for no long branch, only when."""
        if spec.has_long_branch:
            return self.item_tensors(spec, prefix, *axes)
        return self._timestamp(spec, prefix, *axes)

    def user_tensors(self, spec: ModelSpec) -> list[TensorSpec]:
        """What stands for the user: ``user_<f>`` [B, ...] or ``user_embedding`` [B, width]."""
        if self.embeddings == "external" and spec.user_features:
            return [TensorSpec("user_embedding", "float32", ("B", spec.d_user_features))]
        return [feature_tensor("user", f, "B") for f in spec.user_features]

    def pool_tensors(self, spec: ModelSpec, layers: int) -> list[TensorSpec]:
        """Pools of the first `layers` as inputs: ``pool_<k|v>_<layer>`` [M, d - d_u]."""
        if self.pools is None:
            return []
        attention = spec.attention
        return [
            TensorSpec(
                f"pool_{side}_{layer}",
                self.pools,
                (attention.pool_rows(side), attention.d - attention.user_width(side)),
            )
            for layer in range(layers)
            for side in ("k", "v")
            if attention.shared(side)
        ]

    def gives(self, feature: FeatureSpec) -> bool:
        """Whether an item feature is an input of the graphs."""
        return self.item_key in (None, feature.name) or feature.kind == "timestamp"

    @staticmethod
    def _timestamp(spec: ModelSpec, prefix: str, *axes: Axis) -> list[TensorSpec]:
        return [] if spec.timestamp is None else [feature_tensor(prefix, spec.timestamp, *axes)]


FEATURES = EventForm()
"""A tensor per feature."""

SCORE = TensorSpec("score", "float32", ("B", "C"))


def feature_tensor(prefix: str, feature: FeatureSpec, *axes: Axis) -> TensorSpec:
    """The graph tensor ``<prefix>_<feature>`` [*axes, *inner]."""
    return TensorSpec(f"{prefix}_{feature.name}", feature.dtype, (*axes, *feature.inner))


def prefill_io(spec: ModelSpec, form: EventForm = FEATURES) -> GraphSpec:
    """Graph that turns events into cache entries."""
    inputs = form.item_tensors(spec, "event", "B", "S")
    inputs.append(TensorSpec("event_mask", "bool", ("B", "S")))
    cache = CacheSpec.of(spec)
    if spec.layers_see_history:
        inputs += [*cache.named("past", "K"), TensorSpec("past_mask", "bool", ("B", "K"))]
        inputs += form.history_tensors(spec, "past", "B", "K")
        # What a layer caches depends on the attention of those below it.
        inputs += form.pool_tensors(spec, spec.num_layers - 1)
    return GraphSpec("prefill", tuple(inputs), cache.named("cache", "S"))


def decode_io(spec: ModelSpec, form: EventForm = FEATURES) -> GraphSpec:
    """Graph that appends events, scores candidates and returns what to cache."""
    cache = CacheSpec.of(spec)
    # Without a window all of the history is cached: K is S, so the axis is called S.
    cached = "K" if spec.window is not None else "S"
    inputs = [*cache.named("cache", cached), *_request(spec, form)]
    return GraphSpec("decode", tuple(inputs), (SCORE, *cache.named("append", "T")))


def item_table_tensors(spec: ModelSpec, key_width: int, key_dtype: str) -> list[TensorSpec]:
    """Tensors of an item table, a row per item id: ``item_k_index`` [I] and so on.

    `key_width`, `key_dtype`: of the long branch's search key, ``item_long_key``.
    """
    tensors = [
        TensorSpec(f"item_{suffix}", dtype, ("I",) if width is None else ("I", width))
        for suffix, dtype, width in CacheSpec.of(spec).tensors
    ]
    return [*tensors, TensorSpec("item_long_key", key_dtype, ("I", key_width))]


def decode_items_io(spec: ModelSpec, form: EventForm, table: Sequence[TensorSpec]) -> GraphSpec:
    """Decode from the ids of a history and an item table; nothing else is cached of a user."""
    return GraphSpec("decode_items", (*table, *_request(spec, form)), (SCORE,))


def _request(spec: ModelSpec, form: EventForm) -> list[TensorSpec]:
    inputs = [TensorSpec("history_mask", "bool", ("B", "S"))]
    inputs += form.history_tensors(spec, "history", "B", "S")
    inputs += form.item_tensors(spec, "append", "B", "T")
    inputs.append(TensorSpec("append_mask", "bool", ("B", "T")))
    inputs += form.item_tensors(spec, "candidate", "B", "C")
    return [*inputs, *form.user_tensors(spec), *form.pool_tensors(spec, spec.num_layers)]

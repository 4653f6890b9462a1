"""Names, axes and dtypes of everything that crosses a boundary.

One `ModelSpec` describes a model; from it follow the inputs and outputs of the
two graphs (`prefill_io`, `decode_io`), the cache layout (`CacheSpec`) and the
shape ranges of engines (`Profile`). ONNX export, TensorRT profiles, servers and
parity all read them here, so a name is spelled once.

Axis names: B users, S history events, K cached events given to decode, T newly
appended events, C candidates per user. Histories are left-padded and right-aligned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckv_export.errors import SpecError, nearest

Axis = str | int
Option = bool | int | float | str

ROLES = ("item", "user")
KINDS_OF_FEATURE = ("categorical", "sequence", "numeric", "vector", "timestamp")
POOLINGS = ("mean", "sum")
MASK_ALIGNMENTS = ("aligned", "fuxictr")


def require(condition: bool, message: str) -> None:
    """Raise `SpecError` with `message` unless `condition` holds."""
    if not condition:
        raise SpecError(message)


def _require_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    require(
        value in allowed,
        f"{what} must be one of {', '.join(allowed)}, got {value!r}{nearest(str(value), allowed)}",
    )


def _require_at_least(what: str, value: int, least: int) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(good, f"{what} must be a whole number of at least {least}, got {value!r}")


@dataclass(frozen=True)
class FeatureSpec:
    """One input feature and how it becomes `width` columns of an embedding.

    categorical: an id in [0, vocab_size); sequence: `length` ids, pooled over the
    positions whose embedding is not zero; numeric: a number times a learned column;
    vector: `length` numbers, as they are or through a learned [width, length] matrix
    (`projected`); timestamp: whole seconds, width 0, which no embedding reads but a bias over the
    time between events does. `shares` names an earlier feature whose table this one uses.
    """

    name: str
    role: str
    kind: str
    width: int
    vocab_size: int = 0
    length: int = 0
    pooling: str = "mean"
    projected: bool = False
    shares: str | None = None

    def __post_init__(self) -> None:
        where = f"feature {self.name!r}"
        require(bool(self.name), "a feature has an empty name")
        _require_choice(f"{where}: role", self.role, ROLES)
        _require_choice(f"{where}: kind", self.kind, KINDS_OF_FEATURE)
        _require_choice(f"{where}: pooling", self.pooling, POOLINGS)
        _require_at_least(f"{where}: width", self.width, 0 if self.kind == "timestamp" else 1)
        if self.kind == "timestamp":
            require(
                self.width == 0 and self.role == "item",
                f"{where}: a timestamp is an item feature of width 0",
            )
        if self.kind in ("categorical", "sequence"):
            _require_at_least(f"{where}: vocab_size", self.vocab_size, 1)
        if self.kind in ("sequence", "vector"):
            _require_at_least(f"{where}: length", self.length, 1)
        if self.kind == "vector" and not self.projected:
            require(
                self.width == self.length,
                f"{where}: an unprojected vector is as wide as it is long, "
                f"got width {self.width} and length {self.length}",
            )

    @property
    def dtype(self) -> str:
        """Dtype of the graph input: ids and seconds are int32, other numbers float32."""
        return "float32" if self.kind in ("numeric", "vector") else "int32"

    @property
    def inner(self) -> tuple[int, ...]:
        """The feature's own last axis, if it has one."""
        return (self.length,) if self.kind in ("sequence", "vector") else ()


@dataclass(frozen=True)
class AttentionSpec:
    """CollectiveKV attention, SPEC section 1.

    `user_k`, `user_v`: width cached per event, d_u on a shared side, d otherwise.
    `pool_rows_k`, `pool_rows_v`: M, or 0 where that side has no pool.
    """

    d: int
    num_heads: int
    user_k: int
    user_v: int
    pool_rows_k: int
    pool_rows_v: int
    use_silu: bool = True
    use_scale: bool = True
    user_bias: bool = False
    router_bias: bool = False

    def __post_init__(self) -> None:
        _require_at_least("attention: d", self.d, 1)
        _require_at_least("attention: num_heads", self.num_heads, 1)
        require(
            self.d % self.num_heads == 0,
            f"attention: num_heads must divide d = {self.d}, got {self.num_heads}",
        )
        for side in ("k", "v"):
            rows, user = self.pool_rows(side), self.user_width(side)
            _require_at_least(f"attention: pool_rows_{side}", rows, 0)
            _require_at_least(f"attention: user_{side}", user, 0)
            if rows:
                require(
                    user < self.d,
                    f"attention: user_{side} must be below d = {self.d} beside a pool, got {user}",
                )
            else:
                require(
                    user == self.d,
                    f"attention: user_{side} must be d = {self.d} without a pool, got {user}",
                )
        require(
            self.pool_rows_k + self.pool_rows_v > 0,
            "attention has no pool for K or V: this is a baseline without CollectiveKV",
        )

    def pool_rows(self, side: str) -> int:
        """M of side "k" or "v"; 0 if that side is not shared."""
        return self.pool_rows_k if side == "k" else self.pool_rows_v

    def user_width(self, side: str) -> int:
        """Width of what is cached per event for side "k" or "v"."""
        return self.user_k if side == "k" else self.user_v

    def shared(self, side: str) -> bool:
        """Whether side "k" or "v" takes part of its vector from a pool."""
        return self.pool_rows(side) > 0


@dataclass(frozen=True)
class DnnSpec:
    """The scoring network: hidden widths, one activation name each, batch norm or not."""

    hidden: tuple[int, ...]
    activations: tuple[str, ...]
    batch_norm: bool
    sigmoid: bool = True

    def __post_init__(self) -> None:
        for width in self.hidden:
            _require_at_least("dnn: a hidden width", width, 1)
        require(
            len(self.activations) == len(self.hidden),
            f"dnn: {len(self.hidden)} hidden layers need as many activations, "
            f"got {len(self.activations)}",
        )


@dataclass(frozen=True)
class ModelSpec:
    """A CollectiveKV model without its weights.

    `window`: W of the short window (the last W - 1 events), None where the model
    attends to the whole history. `options`: what only this kind of model has, such as
    SIM's ``topk``; its file under ``model/`` says which. Feature order is concatenation order.
    """

    kind: str
    features: tuple[FeatureSpec, ...]
    attention: AttentionSpec
    dnn: DnnSpec
    max_len: int
    window: int | None = None
    mask_alignment: str = "aligned"
    num_layers: int = 1
    options: Mapping[str, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [f.name for f in self.features]
        for name in names:
            require(names.count(name) == 1, f"feature {name!r} stands twice in the model")
        require(
            bool(self.embedded_item_features), "a model needs at least one feature of role 'item'"
        )
        stamps = [f.name for f in self.item_features if f.kind == "timestamp"]
        require(len(stamps) <= 1, f"a model has at most one timestamp, got {', '.join(stamps)}")
        _require_choice("mask_alignment", self.mask_alignment, MASK_ALIGNMENTS)
        _require_at_least("max_len", self.max_len, 1)
        _require_at_least("num_layers", self.num_layers, 1)
        if self.window is not None:
            _require_at_least("window", self.window, 2)
        self._check_sharing()

    def _check_sharing(self) -> None:
        for position, feature in enumerate(self.features):
            if feature.shares is None:
                continue
            earlier = {f.name: f for f in self.features[:position]}
            require(
                feature.shares in earlier and earlier[feature.shares].shares is None,
                f"feature {feature.name!r} shares the table of {feature.shares!r}, which is no "
                f"earlier feature with its own table{nearest(feature.shares, earlier)}",
            )

    @property
    def item_features(self) -> tuple[FeatureSpec, ...]:
        """Features of one event or candidate, in concatenation order."""
        return tuple(f for f in self.features if f.role == "item")

    @property
    def embedded_item_features(self) -> tuple[FeatureSpec, ...]:
        """The item features that an event's embedding is made of."""
        return tuple(f for f in self.item_features if f.kind != "timestamp")

    @property
    def timestamp(self) -> FeatureSpec | None:
        """The feature that says when an event happened, if there is one."""
        return next((f for f in self.item_features if f.kind == "timestamp"), None)

    @property
    def user_features(self) -> tuple[FeatureSpec, ...]:
        """Features of the request, in concatenation order."""
        return tuple(f for f in self.features if f.role == "user")

    @property
    def d_event(self) -> int:
        """d_e, the width of one event's embedding."""
        return sum(f.width for f in self.item_features)

    @property
    def d_user_features(self) -> int:
        """Width of the concatenated user features; 0 without any."""
        return sum(f.width for f in self.user_features)

    @property
    def has_long_branch(self) -> bool:
        """Target-attention models read the raw history beside their window."""
        return self.window is not None

    @property
    def history_features(self) -> tuple[FeatureSpec, ...]:
        """The features of past events that decode reads beside the cache.

        All of them for a long branch, else only the timestamp.
        """
        if self.has_long_branch:
            return self.item_features
        return () if self.timestamp is None else (self.timestamp,)

    @property
    def layers_see_history(self) -> bool:
        """Whether an event's cache entries depend on the events before it."""
        return self.window is None

    def cached_events(self, events: int) -> int:
        """K for a history of `events`: all of them, or the window's W - 1 at most."""
        return events if self.window is None else min(events, self.window - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` reads it back."""
        return dataclasses.asdict(self) | {"options": dict(self.options)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Read `to_dict` data; raises `SpecError` naming an unknown or missing field."""
        fields = dict(_checked(cls, data, "model configuration"))
        fields["features"] = tuple(
            FeatureSpec(**_checked(FeatureSpec, f, "feature")) for f in fields["features"]
        )
        fields["attention"] = AttentionSpec(
            **_checked(AttentionSpec, fields["attention"], "attention")
        )
        dnn = dict(_checked(DnnSpec, fields["dnn"], "dnn"))
        dnn |= {name: tuple(dnn[name]) for name in ("hidden", "activations")}
        return cls(**fields | {"dnn": DnnSpec(**dnn)})


def _checked(cls: type, data: Any, where: str) -> Mapping[str, Any]:
    require(isinstance(data, Mapping), f"{where} must be a mapping, got {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in data:
        require(name in fields, f"{where}: unknown field {name!r}{nearest(str(name), fields)}")
    for name, f in fields.items():
        optional = not (
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        )
        require(optional or name in data, f"{where}: the field {name!r} is missing")
    checked: Mapping[str, Any] = data
    return checked


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


def feature_tensor(prefix: str, feature: FeatureSpec, *axes: str) -> TensorSpec:
    """The graph tensor ``<prefix>_<feature>`` [*axes, *inner]."""
    return TensorSpec(f"{prefix}_{feature.name}", feature.dtype, (*axes, *feature.inner))


def prefill_io(spec: ModelSpec) -> GraphSpec:
    """Graph that turns events into cache entries, SPEC section 4."""
    inputs = [feature_tensor("event", f, "B", "S") for f in spec.item_features]
    inputs.append(TensorSpec("event_mask", "bool", ("B", "S")))
    cache = CacheSpec.of(spec)
    if spec.layers_see_history:
        inputs += [*cache.named("past", "K"), TensorSpec("past_mask", "bool", ("B", "K"))]
        inputs += [feature_tensor("past", f, "B", "K") for f in spec.history_features]
    return GraphSpec("prefill", tuple(inputs), cache.named("cache", "S"))


def decode_io(spec: ModelSpec) -> GraphSpec:
    """Graph that appends events and scores candidates, SPEC section 4."""
    cache = CacheSpec.of(spec)
    # Without a window all of the history is cached: K is S, so the axis is called S.
    cached = "K" if spec.window is not None else "S"
    inputs = [*cache.named("cache", cached), TensorSpec("history_mask", "bool", ("B", "S"))]
    inputs += [feature_tensor("history", f, "B", "S") for f in spec.history_features]
    inputs += [feature_tensor("append", f, "B", "T") for f in spec.item_features]
    inputs.append(TensorSpec("append_mask", "bool", ("B", "T")))
    inputs += [feature_tensor("candidate", f, "B", "C") for f in spec.item_features]
    inputs += [feature_tensor("user", f, "B") for f in spec.user_features]
    score = TensorSpec("score", "float32", ("B", "C"))
    return GraphSpec("decode", tuple(inputs), (score, *cache.named("append", "T")))


@dataclass(frozen=True)
class Range:
    """Smallest, most usual and largest size of one dynamic axis."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        require(
            0 <= self.min <= self.opt <= self.max,
            f"a range must satisfy 0 <= min <= opt <= max, got {self.min}:{self.opt}:{self.max}",
        )

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read ``"8"``, ``"1:8"`` (min:max) or ``"1:4:8"`` (min:opt:max)."""
        try:
            parts = [int(part) for part in text.split(":")]
        except ValueError:
            parts = []
        require(
            1 <= len(parts) <= 3,
            f"a range is written N, MIN:MAX or MIN:OPT:MAX in whole numbers, got {text!r}",
        )
        return cls(parts[0], parts[-2] if len(parts) == 3 else parts[-1], parts[-1])

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True)
class Profile:
    """Shape ranges of one engine, an axis name each."""

    axes: Mapping[str, Range]

    @classmethod
    def default(cls, spec: ModelSpec) -> Profile:
        """Up to 64 users, the model's own history length, 64 appended events, 1024 candidates."""
        history = spec.max_len
        cached = spec.cached_events(history)
        return cls(
            {
                "B": Range(1, 1, 64),
                "S": Range(0, history, history),
                "K": Range(0, cached, cached),
                "T": Range(0, 1, min(64, history)),
                "C": Range(1, 100, 1024),
            }
        )

    def replaced(self, spec: ModelSpec, axes: Mapping[str, Range]) -> Profile:
        """The same profile with some axes given anew; K follows S unless it is given.

        Raises `SpecError` on an unknown axis.
        """
        for axis in axes:
            require(
                axis in self.axes,
                f"a profile has the axes {', '.join(self.axes)}, got {axis!r}",
            )
        changed = {**self.axes, **axes}
        if "S" in axes and "K" not in axes:
            history = axes["S"]
            ends = (spec.cached_events(n) for n in (history.min, history.opt, history.max))
            changed["K"] = Range(*ends)
        return Profile(changed)

    def shapes(self, tensor: TensorSpec) -> tuple[tuple[int, ...], ...]:
        """min, opt and max shape of `tensor`."""
        return tuple(
            tensor.shape({axis: getattr(r, end) for axis, r in self.axes.items()})
            for end in ("min", "opt", "max")
        )

    def to_dict(self) -> dict[str, str]:
        """``{"B": "1:1:64", ...}``."""
        return {axis: str(r) for axis, r in self.axes.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, str]) -> Profile:
        """Read `to_dict` data."""
        return cls({axis: Range.parse(text) for axis, text in data.items()})

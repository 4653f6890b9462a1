"""A model without its weights: its features, attention, scoring network and options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckv_export.errors import SpecError, nearest

Option = bool | int | float | str

ROLES = ("item", "user")
KINDS_OF_FEATURE = ("categorical", "sequence", "numeric", "vector", "timestamp")
POOLINGS = ("mean", "sum")
RESERVED_NAMES = ("mask", "embedding", "k_index", "v_index", "k_user", "v_user")
MASK_ALIGNMENTS = ("aligned", "fuxictr")
SIZE_END = 2**31
"""No size reaches it: ids and counts are int32."""
PRECISIONS = ("fp32", "fp16", "bf16")
"""What a graph's large products may be computed in; its inputs and outputs are the same in all."""


def require(condition: bool, message: str) -> None:
    """Raise `SpecError` with `message` unless `condition` holds."""
    if not condition:
        raise SpecError(message)


def require_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise `SpecError` unless `value` is one of `allowed`."""
    require(
        value in allowed,
        f"{what} must be one of {', '.join(allowed)}, got {value!r}{nearest(str(value), allowed)}",
    )


def _require_at_least(what: str, value: int, least: int) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(good, f"{what} must be a whole number of at least {least}, got {value!r}")
    require(
        value < SIZE_END, f"{what} must be below {SIZE_END}, as ids and counts are, got {value}"
    )


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
        require(isinstance(self.name, str), f"a feature's name must be a text, got {self.name!r}")
        require(bool(self.name), "a feature has an empty name")
        require(
            self.name not in RESERVED_NAMES,
            f"a feature can't be called {self.name!r}: the graphs have tensors of that name",
        )
        require_choice(f"{where}: role", self.role, ROLES)
        require_choice(f"{where}: kind", self.kind, KINDS_OF_FEATURE)
        require_choice(f"{where}: pooling", self.pooling, POOLINGS)
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
    def has_table(self) -> bool:
        """Whether its embedding is looked up by an id."""
        return self.kind in ("categorical", "sequence")

    @property
    def table(self) -> tuple[int, int]:
        """Rows and width of its table."""
        return self.vocab_size, self.width

    @property
    def inner(self) -> tuple[int, ...]:
        """The feature's own last axis, if it has one."""
        return (self.length,) if self.kind in ("sequence", "vector") else ()


@dataclass(frozen=True)
class AttentionSpec:
    """CollectiveKV attention (arXiv 2601.19178).

    `user_k`, `user_v`: width cached per event, d_u on a shared side, d otherwise.
    `pool_rows_k`, `pool_rows_v`: M, or 0 where that side has no pool. `use_silu`: of the query
    (HSTU's has it always), of the user part beside a pool, and again of the whole key or value.
    `use_scale`: scores are divided by sqrt(d / num_heads). `user_bias`, `router_bias`: those
    projections have one.
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
    """The scoring network: hidden widths, one activation name each, batch norm or not.

    Names are those of torch.nn in lower case, or prelu and dice. Batch norm has eps 1e-5 and stands
    before the activation; dice's own has 1e-9.
    """

    hidden: tuple[int, ...]
    activations: tuple[str, ...]
    batch_norm: bool
    sigmoid: bool = True

    def __post_init__(self) -> None:
        for width in self.hidden:
            _require_at_least("dnn: a hidden width", width, 1)
        for name in self.activations:
            require(isinstance(name, str), f"dnn: an activation is named by a text, got {name!r}")
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
        require_choice("mask_alignment", self.mask_alignment, MASK_ALIGNMENTS)
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
            owner = earlier[feature.shares]
            require(
                feature.has_table and owner.has_table and feature.table == owner.table,
                f"feature {feature.name!r} shares the table of {owner.name!r}: both must look up "
                f"ids in {owner.table[0]} rows of {owner.table[1]}, got {feature.kind} with "
                f"{feature.table[0]} rows of {feature.table[1]}",
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
    def layers_see_history(self) -> bool:
        """Whether an event's cache entries depend on the events before it."""
        return self.window is None

    def cached_events(self, events: int) -> int:
        """K for a history of `events`: all of them, or the window's W - 1 at most."""
        return events if self.window is None else min(events, self.window - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` reads it back."""
        return dataclasses.asdict(self)

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

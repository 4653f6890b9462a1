"""What is known of every item, so that a request need only name it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckv_export.arrays import read_arrays, take
from ckv_export.contract import ModelSpec, TensorSpec, require
from ckv_export.errors import EventsError, nearest
from ckv_export.runtimes.base import Array


@dataclass(frozen=True)
class Catalogue:
    """Item features by item id.

    `key`: the categorical item feature whose ids they go by. `features`: each other embedded item
    feature, int32 or float32 [vocab of the key, ...]; an id that the file doesn't name has zeros,
    as padding has. `known`: how many ids it names; `missing`: how many it doesn't, but for padding.
    """

    key: str
    features: Mapping[str, Array]
    known: int
    missing: int = 0


def notes_on(catalogue: Catalogue, spec: ModelSpec) -> tuple[str, ...]:
    """What must be told of what the file says and doesn't."""
    return (*_on_missing(catalogue), *_on_padding(catalogue, spec))


def _on_missing(catalogue: Catalogue) -> Iterator[str]:
    if catalogue.missing:
        yield (
            f"the item features are of {catalogue.known:,} ids of {catalogue.key!r} and not of "
            f"{catalogue.missing:,} others, which are scored with zeros in their place"
        )


def _on_padding(catalogue: Catalogue, spec: ModelSpec) -> Iterator[str]:
    """Where id 0 has features padding has them too, and takes part in scores.

    Not in those of a model without a window, which counts real events alone.
    """
    given = [name for name, rows in catalogue.features.items() if rows[0].any()]
    if spec.window is not None and given:
        yield (
            f"{catalogue.key} 0 is padding, and the item features given for it "
            f"({', '.join(given)}) are not zeros: scores depend on padding. If histories were "
            "padded with zeros in training, leave 0 out of the file."
        )


def has_item_key(spec: ModelSpec) -> bool:
    """Whether items have an id to be known by."""
    return any(f.kind == "categorical" for f in spec.item_features)


def item_key(spec: ModelSpec, name: str | None = None) -> str:
    """The item feature called `name`, or the first categorical one; raises `SpecError`."""
    ids = [f.name for f in spec.item_features if f.kind == "categorical"]
    require(bool(ids), "the model has no categorical item feature to know items by")
    if name is None:
        return ids[0]
    require(
        name in ids,
        f"the item key must be one of {', '.join(ids)}, got {name!r}{nearest(name, ids)}",
    )
    return name


def load_catalogue(path: Path, spec: ModelSpec, key: str) -> Catalogue:
    """Read an .npz or .parquet with the ids ``<key>`` [n] and a column per other item feature.

    Raises `EventsError` for a file, shape, id or number that doesn't fit, and an id named twice.
    """
    arrays = read_arrays(path)
    sizes: dict[str, int] = {}
    by_name = {f.name: f for f in spec.embedded_item_features}
    ids = take(path, arrays, TensorSpec(key, "int32", ("n",)), sizes, by_name[key])
    _check_unique(path, key, ids)
    features, vocab = {}, by_name[key].vocab_size
    for name, feature in by_name.items():
        if name != key:
            wanted = TensorSpec(name, feature.dtype, ("n", *feature.inner))
            rows = take(path, arrays, wanted, sizes, feature)
            table = np.zeros((vocab, *feature.inner), feature.dtype)
            table[ids] = rows
            features[name] = table
    return Catalogue(key, features, len(ids), vocab - 1 - np.count_nonzero(ids))


def _check_unique(path: Path, key: str, ids: Array) -> None:
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise EventsError(f"{path} names the {key} {unique[counts > 1][0]} more than once")


def bare_catalogue(spec: ModelSpec, key: str) -> Catalogue:
    """The catalogue of a model whose items have no feature but their id; raises `SpecError`."""
    others = [f.name for f in spec.embedded_item_features if f.name != key]
    require(
        not others,
        f"items have more features than {key!r} ({', '.join(others)}): give --item-features",
    )
    ids = next(f.vocab_size for f in spec.features if f.name == key)
    return Catalogue(key, {}, ids)

"""Several shape ranges for one engine, by name, and whether any request could meet them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ckv_export.contract import GraphSpec, Profile, Range
from ckv_export.errors import InputError, SpecError, nearest, reason
from ckv_export.manifest import Manifest

AXES = {"batch": "B", "history": "S", "cached": "K", "appended": "T", "candidates": "C"}
"""Word for an axis -> its name in the contract; either may be used."""

_NEVER_EMPTY = {"B": "users", "C": "candidates"}


@dataclass(frozen=True)
class NamedRanges:
    """One optimization profile as the user wrote it: its name, and ranges that replace others."""

    name: str
    axes: tuple[tuple[str, Range], ...]

    @classmethod
    def parse(cls, text: str) -> NamedRanges:
        """Read ``"history=0:50:100,batch=8"``; raises `InputError`."""
        pairs = [part.partition("=") for part in text.split(",")]
        if not all(separator for _, separator, _ in pairs):
            raise InputError(f"a profile is written AXIS=MIN:OPT:MAX,..., got {text!r}")
        return cls.read(text, [(name.strip(), value) for name, _, value in pairs])

    @classmethod
    def read(cls, name: str, ranges: Iterable[tuple[str, Any]]) -> NamedRanges:
        """Ranges by axis, ``("history", "0:50:100")``; raises `InputError` naming `name`."""
        axes: dict[str, Range] = {}
        for word, value in ranges:
            axis = AXES.get(word, word)
            if axis in axes:
                raise InputError(f"profile {name!r} has two ranges of the axis {axis}: leave one")
            try:
                axes[axis] = Range.parse(str(value).strip())
            except SpecError as error:
                raise InputError(f"profile {name!r}, {word}: {error}") from error
        return cls(name, tuple(axes.items()))

    def __str__(self) -> str:
        return ",".join(f"{axis}={size}" for axis, size in self.axes)


class _Loader(yaml.BaseLoader):
    """Everything is text: YAML would read 1:8:32 as a number to the base of 60. No key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} stands there twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_profiles(path: Path) -> tuple[NamedRanges, ...]:
    """Profiles of a YAML file, ``short: {history: 0:50:100}``; raises `InputError`."""
    try:
        data = yaml.load(path.read_text(), Loader=_Loader)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        told = " ".join(reason(error).split())
        raise InputError(f"the profiles {path} can't be read: {told}") from error
    named = isinstance(data, dict) and all(isinstance(each, dict) for each in data.values())
    if not named or not data:
        raise InputError(
            f"{path} must hold profiles by name, each a mapping of axes to ranges, such as "
            "'short: {history: 0:50:100}'"
        )
    return tuple(NamedRanges.read(str(name), ranges.items()) for name, ranges in data.items())


def resolve(
    wishes: Sequence[NamedRanges], base: Profile, manifest: Manifest
) -> tuple[Profile, ...]:
    """The profiles wished for, on top of `base`; `base` alone where there are none.

    Raises `InputError` naming the input of a graph where an axis is unknown or where no request
    could have the sizes of a profile.
    """
    graphs = [manifest.graph(name) for name in manifest.graph_names]
    if not wishes:
        _require_servable("the profile", base, manifest, graphs)
        return (base,)
    profiles = []
    for wish in wishes:
        where = f"profile {wish.name!r}"
        for axis, _ in wish.axes:
            if axis not in base.axes:
                raise InputError(f"{where}: {_unknown(axis, base, graphs)}")
        profile = base.replaced(manifest.model, dict(wish.axes))
        _require_servable(where, profile, manifest, graphs)
        profiles.append(profile)
    return tuple(profiles)


def _unknown(axis: str, base: Profile, graphs: Sequence[GraphSpec]) -> str:
    for tensor in _inputs(graphs):
        if tensor.name == axis:
            own = [a for a in tensor.axes if isinstance(a, str)]
            return f"{axis!r} is an input; give ranges to its axes {', '.join(own)} instead"
    words = [*AXES, *base.axes]
    listed = "; ".join(f"{a} of {_first_input(a, graphs)}" for a in base.axes)
    return f"there is no axis {axis!r}{nearest(axis, words)}; the axes are {listed}"


def _require_servable(
    where: str, profile: Profile, manifest: Manifest, graphs: Sequence[GraphSpec]
) -> None:
    axes = profile.axes
    for axis, what in _NEVER_EMPTY.items():
        if axes[axis].max == 0:
            raise InputError(
                f"{where}: input {_first_input(axis, graphs)} would never hold {what}: the range "
                f"of {axis} is {axes[axis]}, and its maximum must be 1 or more"
            )
    cached = manifest.model.cached_events
    fewest, most = cached(axes["S"].min), cached(axes["S"].max)
    if not (axes["K"].min <= most and fewest <= axes["K"].max):
        raise InputError(
            f"{where}: no history fits input {_first_input('K', graphs)}: the range of K is "
            f"{axes['K']}, but histories of {axes['S'].min} to {axes['S'].max} events (S) have "
            f"{fewest} to {most} cached ones"
        )
    table = manifest.item_table
    if table is not None and not axes["I"].min <= table.items <= axes["I"].max:
        raise InputError(
            f"{where}: the item table has {table.items} rows, which the range {axes['I']} of I, "
            f"of input {_first_input('I', graphs)}, excludes"
        )


def _first_input(axis: str, graphs: Sequence[GraphSpec]) -> str:
    names = dict.fromkeys(t.name for t in _inputs(graphs) if axis in t.axes)
    first = next(iter(names), None)
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{first!r}{more}" if first else "no input"


def _inputs(graphs: Sequence[GraphSpec]) -> list[Any]:
    return [tensor for graph in graphs for tensor in graph.inputs]

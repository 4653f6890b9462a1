"""A bundle's table of contents: what it holds, how it was made, and the hash of every file.

``manifest.json`` is the only thing that later rooms know of a bundle; they never open the
checkpoint it came from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckv_export.contract import (
    EventForm,
    GraphSpec,
    ModelSpec,
    Profile,
    decode_io,
    decode_items_io,
    item_table_tensors,
    prefill_io,
)
from ckv_export.errors import BundleError, SpecError

FILE_NAME = "manifest.json"
POOLS_FILE = "pools.safetensors"
ITEM_TABLE_FILE = "item_table.safetensors"
SCHEMA_VERSION = 3
POOLS = ("constant", "refit", "input")
"""Where pools are: constants of the graphs, constants that engines can exchange, or inputs."""
_CHUNK = 2**20


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: SHA-256 in hex and size in bytes."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Hash the file at `path`, a chunk at a time."""
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return cls(digest.hexdigest(), path.stat().st_size)


@dataclass(frozen=True)
class ItemTable:
    """A table with a row for each of `items` ids; its search key's width and dtype."""

    items: int
    key_width: int
    key_dtype: str


@dataclass(frozen=True)
class EngineEntry:
    """An engine of the bundle: which graph, built by what, for which GPUs and shapes.

    `pool_step`: who computes it, plugin or native layers; `plugin`: its record, with the path of
    the library in the bundle under "file", None where the engine needs no library; `settings`: how
    it was built, beyond that; `report`: path of the file that lists its layers; `profile`: ranges
    of the first of its `profiles`; `onnx`: SHA-256 of the graph's file that it was built from.
    """

    graph: str
    file: str
    backend: str
    backend_version: str
    targets: tuple[str, ...]
    profile: Mapping[str, str]
    layers: int
    seconds: float
    # What later versions record; an engine of an earlier one has none of it.
    pool_step: str = ""
    plugin: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    report: str = ""
    profiles: tuple[Mapping[str, str], ...] = ()
    onnx: str = ""


@dataclass(frozen=True)
class Manifest:
    """The contents of a bundle.

    `fingerprint`: of the model; `fingerprints`: of what its cache entries depend on ("entries"), of
    all but its pools ("all but pools"), of item features in the graphs ("looked up"). `pool`: how a
    retrained pool gets in, one of `POOLS`. `precision`: what the graphs' large products are in, one
    of `contract.PRECISIONS`. `files`: every file but the manifest, by path relative to the bundle.
    `parity`: outcome of the gate, None if it was switched off. `timings`: seconds of each stage
    that made the bundle. `padding`: what is cached of padding, by decode's ``cache_*`` inputs, if
    that isn't zero (see `PrefillGraph.padding`).
    """

    name: str
    fingerprint: str
    model: ModelSpec
    form: EventForm
    item_table: ItemTable | None
    profile: Profile
    source: Mapping[str, Any]
    versions: Mapping[str, str]
    operators: Mapping[str, int]
    notes: tuple[str, ...]
    timings: Mapping[str, float]
    parity: Mapping[str, Any] | None
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    engines: tuple[EngineEntry, ...] = ()
    precision: str = "fp32"
    pool: str = "constant"
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    padding: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def graph(self, name: str) -> GraphSpec:
        """Inputs and outputs of one of `graph_names`."""
        if name == "prefill":
            return prefill_io(self.model, self.form)
        if name == "decode":
            return decode_io(self.model, self.form)
        assert self.item_table is not None
        layout = self.item_table.key_width, self.item_table.key_dtype
        return decode_items_io(self.model, self.form, item_table_tensors(self.model, *layout))

    @property
    def graph_names(self) -> tuple[str, ...]:
        """Prefill and decode, and with an item table the decode that takes it."""
        return ("prefill", "decode", *(["decode_items"] if self.item_table else []))

    @property
    def entries_fingerprint(self) -> str:
        """What cache entries depend on: of bundles that have it in common, caches are one."""
        return self.fingerprints.get("entries", self.fingerprint)

    def with_files(self, folder: Path) -> Manifest:
        """The same manifest listing what `folder` now holds."""
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != FILE_NAME)
        entries = {p.relative_to(folder).as_posix(): FileEntry.of(p) for p in paths}
        return dataclasses.replace(self, files=entries)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` reads it back."""
        graphs = {name: _graph_dict(self.graph(name)) for name in self.graph_names}
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            "schema_version": SCHEMA_VERSION,
            **plain,
            "model": self.model.to_dict(),
            "form": dataclasses.asdict(self.form),
            "item_table": self.item_table and dataclasses.asdict(self.item_table),
            "profile": self.profile.to_dict(),
            "graphs": graphs,
            "files": {name: dataclasses.asdict(entry) for name, entry in self.files.items()},
            "engines": [dataclasses.asdict(engine) for engine in self.engines],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Read `to_dict` data; raises KeyError or TypeError where a field is missing or odd."""
        data = {"padding": {}, **data}  # earlier versions didn't record it
        _check_kinds(data)
        known = {f.name: data[f.name] for f in dataclasses.fields(cls)}
        engines = [
            e | {"targets": tuple(e["targets"]), "profiles": tuple(e.get("profiles", ()))}
            for e in data["engines"]
        ]
        return cls(
            **known
            | {
                "model": ModelSpec.from_dict(data["model"]),
                "form": EventForm(**data["form"]),
                "item_table": data["item_table"] and ItemTable(**data["item_table"]),
                "profile": Profile.from_dict(data["profile"]),
                "notes": tuple(data["notes"]),
                "files": {name: FileEntry(**entry) for name, entry in data["files"].items()},
                "engines": tuple(EngineEntry(**engine) for engine in engines),
            }
        )

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`, whole or not at all."""
        beside = folder / f".{FILE_NAME}.partial"
        beside.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        beside.replace(folder / FILE_NAME)


_KINDS = {
    **dict.fromkeys(("name", "fingerprint", "precision", "pool"), str),
    **dict.fromkeys(("model", "profile", "source", "versions", "operators", "timings"), dict),
    **dict.fromkeys(("parity", "files", "fingerprints", "padding"), dict),
    **dict.fromkeys(("notes", "engines"), list),
}
_AXES = ("B", "S", "K", "T", "C")
_ENGINE_KINDS: dict[str, type] = {
    **dict.fromkeys(("graph", "file", "backend", "backend_version"), str),
    "targets": list,
    "profile": dict,
}
_LATER_ENGINE_KINDS: dict[str, type] = {
    "pool_step": str,
    "report": str,
    "onnx": str,
    "plugin": dict,
    "settings": dict,
    "profiles": list,
}
_PLUGIN_KINDS: dict[str, type] = {
    **dict.fromkeys(("kind", "sha256", "operator_version", "tensorrt"), str),
    "targets": list,
    "carried": bool,
}


def _check_kinds(data: Mapping[str, Any]) -> None:
    """Raise KeyError or TypeError for what no later room would survive."""
    _check_each("", data, _KINDS | ({} if data["parity"] is not None else {"parity": type(None)}))
    if data["parity"] is not None:
        _check_each("parity: ", data["parity"], {"seed": int})
    _check_all("profile", data["profile"].values(), str)
    _check_each("profile: ", data["profile"], dict.fromkeys(_AXES, str))
    _check_all("fingerprints", data["fingerprints"].values(), str)
    if data["item_table"] is not None:
        _check_each("item table: ", data["item_table"], {"items": int})
    for engine in data["engines"]:
        given = {n: k for n, k in _LATER_ENGINE_KINDS.items() if engine.get(n) is not None}
        _check_each("engine: ", engine, {**_ENGINE_KINDS, **given})
        _check_all("engine: targets", engine["targets"], str)
        for profile in (engine["profile"], *(engine.get("profiles") or ())):
            _check_all("engine: profile", profile.values(), str)
            Profile.from_dict(profile)
        if engine.get("plugin") is not None:
            _check_each("plugin: ", engine["plugin"], _PLUGIN_KINDS)
    for name in _paths(data):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name!r} is no path in the bundle")
    _check_all("notes", data["notes"], str)


def _check_all(where: str, values: Iterable[Any], kind: type) -> None:
    for value in values:
        _check_each("", {where: value}, {where: kind})


def _paths(data: Mapping[str, Any]) -> Iterator[str]:
    """Everything that later rooms take for the path of a file in the bundle."""
    yield from data["files"]
    for engine in data["engines"]:
        plugin = engine.get("plugin") or {}
        yield from filter(None, (engine["file"], engine.get("report"), plugin.get("file")))


def _check_each(where: str, data: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        if not isinstance(data[name], kind):
            got = type(data[name]).__name__
            raise TypeError(f"{where}{name} must be a {kind.__name__}, got {got}")


def _check_padding(manifest: Manifest) -> None:
    """Raise ValueError or TypeError unless padding is an entry that the decode graph can take."""
    tensors = {t.name: t for t in manifest.graph("decode").inputs if t.name.startswith("cache_")}
    for name, values in manifest.padding.items():
        if name not in tensors:
            raise ValueError(f"padding: the decode graph caches no {name!r}")
        size = math.prod(tensors[name].shape({"B": 1, "K": 1, "S": 1}))
        rows = manifest.model.attention.pool_rows(name[len("cache_")])
        end = float(rows) if tensors[name].dtype == "int32" else math.inf
        least = 0.0 if tensors[name].dtype == "int32" else -math.inf
        if len(values) != size or not all(least <= v < end and abs(v) < math.inf for v in values):
            raise ValueError(f"padding: {name} must be {size} numbers that a cache can hold")


def _graph_dict(graph: GraphSpec) -> dict[str, Any]:
    return {
        "file": f"{graph.name}.onnx",
        "inputs": [dataclasses.asdict(t) for t in graph.inputs],
        "outputs": [dataclasses.asdict(t) for t in graph.outputs],
    }


def bundle_in(folder: Path) -> Path | None:
    """The first bundle in a folder of bundles, None if it is none."""
    return min((p.parent for p in folder.glob(f"[!.]*/{FILE_NAME}")), default=None)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the bundle `folder`; raises `BundleError`."""
    path = folder / FILE_NAME
    if not path.is_file():
        why = f"it has no {FILE_NAME}" if folder.exists() else "there is no such folder"
        held = bundle_in(folder)
        why += f"; give one of the bundles in it, such as {held}" if held else ""
        raise BundleError(f"{folder} is no bundle: {why}")
    try:
        data = json.loads(path.read_text())
        version = data["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is no bundle manifest: {error}") from error
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version}, this ckv-export reads {SCHEMA_VERSION}: "
            "export the model again with it"
        )
    try:
        manifest = Manifest.from_dict(data)
        _check_padding(manifest)
        graphs = json.loads(json.dumps(manifest.to_dict()["graphs"]))
    except (KeyError, TypeError, ValueError, AttributeError, SpecError) as error:
        raise BundleError(f"{path} is damaged: {error}") from error
    if data.get("graphs") != graphs:
        raise BundleError(f"{path} is damaged: its graphs are not those of its model")
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """Raise `BundleError` unless every listed file is there with its size and hash.

    Graphs, engines and an item table must be listed.
    """
    needed = [f"{name}.onnx" for name in manifest.graph_names]
    needed += [engine.file for engine in manifest.engines]
    needed += [ITEM_TABLE_FILE] if manifest.item_table else []
    needed += [POOLS_FILE] if manifest.form.pools else []
    for name in needed:
        if name not in manifest.files:
            raise BundleError(f"{folder / FILE_NAME} has no hash of {name}: export it again")
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"the bundle {folder} lacks its file {name}: export it again")
        if FileEntry.of(path) != entry:
            raise BundleError(
                f"{path} is not the file that was exported, its hash differs: export it again"
            )


def open_bundle(folder: Path) -> Manifest:
    """Read and verify the bundle `folder`; raises `BundleError`."""
    manifest = read_manifest(folder)
    verify(folder, manifest)
    return manifest

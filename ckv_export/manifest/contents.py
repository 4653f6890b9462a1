"""What a manifest says: what a bundle holds, how it was made, and the hash of every file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
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
from ckv_export.manifest.checks import check_kinds

FILE_NAME = "manifest.json"
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
    all but its pools ("all but pools"), of item features in the graphs ("looked up"), of the name
    that the user gave to what item ids mean ("ids", if so). `pool`: how a
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
    def item_rows(self) -> bool:
        """Whether the graphs look the first layer's rows of an item up, which no input shows."""
        return bool(self.source.get("item_rows"))

    @property
    def entries_fingerprint(self) -> str:
        """What cache entries depend on: of bundles that have it in common, caches are one."""
        return self.fingerprints.get("entries", self.fingerprint)

    @property
    def ids_fingerprint(self) -> str:
        """The same of users whose record is the ids of their history alone."""
        return self.fingerprints.get("ids", self.entries_fingerprint)

    @property
    def users_fingerprint(self) -> str:
        """The same of the users that a server of the bundle keeps."""
        return self.ids_fingerprint if self.item_table else self.entries_fingerprint

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
        check_kinds(data)
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


def _graph_dict(graph: GraphSpec) -> dict[str, Any]:
    return {
        "file": f"{graph.name}.onnx",
        "inputs": [dataclasses.asdict(t) for t in graph.inputs],
        "outputs": [dataclasses.asdict(t) for t in graph.outputs],
    }

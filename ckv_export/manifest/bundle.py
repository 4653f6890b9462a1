"""Reading a bundle's manifest, and verifying that its files are those that it lists."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ckv_export.errors import BundleError, SpecError
from ckv_export.manifest.contents import FILE_NAME, SCHEMA_VERSION, FileEntry, Manifest

POOLS_FILE = "pools.safetensors"
ITEM_TABLE_FILE = "item_table.safetensors"


def is_bundle(folder: Path) -> bool:
    """Whether a folder has a manifest, sound or not."""
    return (folder / FILE_NAME).is_file()


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

"""JSON data of other kinds is refused before anything relies on it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from ckv_testing.toy_bundle import changed, data_of, places

from ckv_export.contract import Profile
from ckv_export.engine.profiles import input_shapes
from ckv_export.errors import BundleError, EngineError
from ckv_export.manifest import (
    FILE_NAME,
    Manifest,
    open_bundle,
    read_manifest,
)

NEEDED = [field.name for field in dataclasses.fields(Manifest) if field.name != "padding"]


def test_a_bundle_of_an_earlier_version_has_zeros_for_padding(folder: Path):
    data = data_of(folder)
    del data["padding"]
    (folder / FILE_NAME).write_text(json.dumps(data))
    assert open_bundle(folder).padding == {}


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_field_is_named(folder: Path, name: str):
    data = data_of(folder)
    del data[name]
    (folder / FILE_NAME).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=name):
        read_manifest(folder)


PLUGIN = {
    **dict.fromkeys(("kind", "sha256", "operator_version", "tensorrt"), "x"),
    "targets": ["sm90"],
    "carried": True,
}
ENGINE_TEXTS = ("graph", "file", "backend", "backend_version", "pool_step", "report", "onnx")
PLAIN = [
    *((name,) for name in NEEDED if name not in ("form", "item_table")),
    *(("engines", 0, name) for name in (*ENGINE_TEXTS, "plugin", "settings", "profiles")),
    *(("engines", 0, name) for name in ("targets", "profile")),
    *(("engines", 0, "plugin", name) for name in PLUGIN),
    ("parity", "seed"),
]


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: ".".join(map(str, path)))
def test_a_value_of_another_kind_is_named(folder: Path, path: tuple[Any, ...]):
    data = changed(data_of(folder), ("engines", 0, "plugin"), PLUGIN)
    (folder / FILE_NAME).write_text(json.dumps(changed(data, path, 0.5)))
    with pytest.raises(BundleError, match=f"is damaged: .*{path[-1]} must be a .*, got float"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../decode.onnx", "engines/../../x"])
@pytest.mark.parametrize("where", ["files", "file", "report", "plugin"])
def test_a_path_that_leaves_the_bundle(folder: Path, where: str, name: str):
    data = data_of(folder)
    engine = data["engines"][0]
    match where:
        case "files":
            data["files"][name] = data["files"]["empty"]
        case "plugin":
            engine["plugin"] = PLUGIN | {"file": name}
        case _:
            engine[where] = name
    (folder / FILE_NAME).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=f"'{name}' is no path in the bundle"):
        read_manifest(folder)


def test_no_damage_ends_in_another_error(folder: Path):
    """Every value replaced by every other kind: refused in a sentence, or harmless to all users."""
    data = data_of(folder)
    refused = 0
    # Within the graphs any change is the same one: they are no longer those of the model.
    tried = [path for path in places(data) if path[0] != "graphs" or len(path) <= 3]
    for path in tried:
        for value in (..., None, -1, "x", {"x": 1}):
            (folder / FILE_NAME).write_text(json.dumps(changed(data, path, value)))
            try:
                manifest = open_bundle(folder)
            except BundleError as error:
                assert "\n" not in str(error)  # noqa: PT017
                refused += 1
                continue
            again = json.loads(json.dumps(manifest.to_dict()))
            assert Manifest.from_dict(again).to_dict() == manifest.to_dict()
            _use(manifest)
    assert refused > len(tried)


def _use(manifest: Manifest) -> None:
    """What other rooms take from a manifest."""
    for graph in manifest.graph_names:
        with contextlib.suppress(EngineError):
            input_shapes(manifest.graph(graph), manifest.profile)
    assert all(isinstance(note, str) for note in manifest.notes)
    assert all(isinstance(engine.file, str) for engine in manifest.engines)
    assert manifest.parity is None or isinstance(manifest.parity["seed"], int)
    assert isinstance(manifest.name, str)
    assert isinstance(manifest.entries_fingerprint, str)
    assert {"B", "S", "K", "T", "C"} <= manifest.profile.axes.keys()
    assert manifest.item_table is None or f"{manifest.item_table.items:,}"
    assert all(isinstance(feature.name, str) for feature in manifest.model.features)
    assert all(isinstance(name, str) for name in manifest.model.dnn.activations)
    for engine in manifest.engines:
        assert all(isinstance(target, str) for target in engine.targets)
        for profile in (engine.profile, *engine.profiles):
            Profile.from_dict(profile)
    assert isinstance(manifest.fingerprint, str)

"""No damaged bundle is taken for one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from ckv_testing.toy_bundle import FILES, MANIFEST, data_of

from ckv_export.contract import EventForm
from ckv_export.errors import BundleError
from ckv_export.manifest import (
    FILE_NAME,
    SCHEMA_VERSION,
    open_bundle,
    read_manifest,
    verify,
)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_changed_file_is_named(folder: Path, name: str):
    (folder / name).write_bytes(FILES[name] + b"!")
    with pytest.raises(BundleError, match=f"{name} is not the file that was exported"):
        open_bundle(folder)


@pytest.mark.parametrize("name", sorted(n for n in FILES if FILES[n]))
def test_a_flipped_bit_is_found_where_the_size_is_right(folder: Path, name: str):
    data = bytearray(FILES[name])
    data[-1] ^= 0x80
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match="hash differs"):
        verify(folder, read_manifest(folder))


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_lost_file_is_named(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"lacks its file {name}"):
        open_bundle(folder)


@pytest.mark.parametrize("name", sorted(n for n in FILES if n != "empty"))
def test_graphs_and_engines_must_be_listed(folder: Path, name: str):
    data = data_of(folder)
    del data["files"][name]
    (folder / FILE_NAME).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=f"no hash of {name}"):
        open_bundle(folder)


def test_pools_that_graphs_take_must_be_listed(folder: Path):
    form = EventForm(pools="float32")
    dataclasses.replace(MANIFEST.with_files(folder), form=form).write(folder)
    with pytest.raises(BundleError, match=r"no hash of pools\.safetensors"):
        open_bundle(folder)


def test_other_files_in_the_folder_do_no_harm(folder: Path):
    (folder / "notes.txt").write_text("mine")
    assert "notes.txt" not in open_bundle(folder).files


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "3", '"manifest"', "{}", '{"schema_version": 3}', "\ufeff{}"),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_what_is_no_manifest(folder: Path, text: str):
    (folder / FILE_NAME).write_text(text)
    with pytest.raises(BundleError, match=str(folder / FILE_NAME)):
        read_manifest(folder)


def test_bytes_that_are_no_text(folder: Path):
    (folder / FILE_NAME).write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(BundleError, match="no bundle manifest"):
        read_manifest(folder)


@pytest.mark.parametrize("instead", ["nothing", "a folder"])
def test_a_folder_without_a_manifest(folder: Path, instead: str):
    (folder / FILE_NAME).unlink()
    if instead == "a folder":
        (folder / FILE_NAME).mkdir()
    with pytest.raises(BundleError, match=r"is no bundle: it has no manifest\.json"):
        read_manifest(folder)
    with pytest.raises(BundleError, match="is no bundle: there is no such folder"):
        read_manifest(folder / "typo")


@pytest.mark.parametrize(
    "version", [SCHEMA_VERSION + 1, SCHEMA_VERSION - 1, 0, -1, "1", None, 1.5, [1]]
)
def test_another_schema_version_names_both(folder: Path, version: object):
    data = data_of(folder) | {"schema_version": version}
    (folder / FILE_NAME).write_text(json.dumps(data))
    message = rf"schema version {version}, this ckv-export reads {SCHEMA_VERSION}: export"
    with pytest.raises(BundleError, match=message.replace("[", r"\[").replace("]", r"\]")):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("padding", "says"),
    [
        ({"cache_v_index": [1]}, "caches no 'cache_v_index'"),  # V has no pool
        ({"cache_k_index": [10]}, "cache_k_index must be 1 numbers"),
        ({"cache_k_index": [-1]}, "cache_k_index must be 1 numbers"),
        ({"cache_k_user": [1.0]}, "cache_k_user must be 2 numbers"),
        ({"cache_k_user": [1.0, float("nan")]}, "cache_k_user must be 2 numbers"),
        ({"cache_k_user": [1.0, "x"]}, "not supported between"),
    ],
)
def test_padding_is_an_entry_of_the_model(folder: Path, padding: dict, says: str):
    (folder / FILE_NAME).write_text(json.dumps(data_of(folder) | {"padding": padding}))
    with pytest.raises(BundleError, match=f"is damaged: .*{says}"):
        read_manifest(folder)


def test_graphs_of_another_model(folder: Path):
    """What a server reads of the graphs can't differ from what follows from the model."""
    data = data_of(folder)
    data["graphs"]["decode"]["inputs"][0]["dtype"] = "int64"
    (folder / FILE_NAME).write_text(json.dumps(data))
    with pytest.raises(BundleError, match="graphs are not those of its model"):
        read_manifest(folder)

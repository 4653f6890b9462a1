"""A manifest is written whole and read back equal."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest
from ckv_testing.toy_bundle import ENGINE, FILES, MANIFEST, SPEC, data_of

from ckv_export.contract import EventForm, Range
from ckv_export.manifest import (
    FILE_NAME,
    FileEntry,
    Manifest,
    open_bundle,
)


def test_reads_back_equal(folder: Path):
    manifest = open_bundle(folder)
    assert manifest == MANIFEST.with_files(folder)
    assert manifest.model == SPEC
    assert manifest.profile.axes["B"] == Range(1, 2, 3)
    assert manifest.engines == (ENGINE,)
    assert manifest.graph_names == ("prefill", "decode", "decode_items")


def test_a_bundle_without_an_item_table(folder: Path):
    plain = dataclasses.replace(MANIFEST.with_files(folder), item_table=None)
    plain.write(folder)
    assert open_bundle(folder) == plain
    assert set(data_of(folder)["graphs"]) == {"prefill", "decode"}


@pytest.mark.parametrize("form", [EventForm("external"), EventForm(item_key="item_id")])
def test_graphs_follow_the_form(folder: Path, form: EventForm):
    dataclasses.replace(MANIFEST.with_files(folder), form=form).write(folder)
    manifest = open_bundle(folder)
    assert manifest.form == form
    what = form.item_key or "embedding"
    for graph in manifest.graph_names:
        prefix = "event" if graph == "prefill" else "candidate"
        given = [t.name for t in manifest.graph(graph).inputs if t.name.startswith(prefix)]
        assert [name for name in given if name != "event_mask"] == [f"{prefix}_{what}"]


def test_an_engine_of_an_earlier_version(folder: Path):
    """It has none of what later versions record."""
    data = data_of(folder)
    for name in ("pool_step", "plugin", "settings", "report", "profiles", "onnx"):
        del data["engines"][0][name]
    (folder / FILE_NAME).write_text(json.dumps(data))
    assert open_bundle(folder).engines == (dataclasses.replace(ENGINE, profiles=()),)


def test_caches_go_by_a_fingerprint_of_their_own():
    def of(**fingerprints: str) -> Manifest:
        return dataclasses.replace(MANIFEST, fingerprints=fingerprints)

    assert MANIFEST.entries_fingerprint == MANIFEST.ids_fingerprint == MANIFEST.fingerprint
    assert of(entries="ef" * 32).entries_fingerprint == "ef" * 32
    assert of(entries="ef" * 32).ids_fingerprint == "ef" * 32
    named = of(entries="ef" * 32, ids="1d" * 32)
    assert (named.entries_fingerprint, named.ids_fingerprint) == ("ef" * 32, "1d" * 32)
    # The users of a server are ids alone where there is a table of items.
    assert named.users_fingerprint == "1d" * 32
    assert dataclasses.replace(named, item_table=None).users_fingerprint == "ef" * 32


def test_lists_every_file_but_itself_with_its_hash(folder: Path):
    listed = data_of(folder)["files"]
    assert list(listed) == sorted(FILES)
    assert listed == {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in FILES.items()
    }


def test_hashes_files_larger_than_one_chunk(tmp_path: Path):
    data = b"0123456789abcdef" * (2**18) + b"end"
    (tmp_path / "large").write_bytes(data)
    entry = FileEntry.of(tmp_path / "large")
    assert entry == FileEntry(hashlib.sha256(data).hexdigest(), len(data))


def test_says_which_tensors_the_graphs_take(folder: Path):
    """The file alone tells a server names, dtypes and axes."""
    graphs = data_of(folder)["graphs"]
    prefill = {t["name"]: (t["dtype"], t["axes"]) for t in graphs["prefill"]["inputs"]}
    assert prefill == {
        "event_item_id": ("int32", ["B", "S"]),
        "event_tags": ("int32", ["B", "S", 3]),
        "event_mask": ("bool", ["B", "S"]),
    }
    outputs = {t["name"]: (t["dtype"], t["axes"]) for t in graphs["decode"]["outputs"]}
    assert outputs == {
        "score": ("float32", ["B", "C"]),
        "append_k_index": ("int32", ["B", 1, "T"]),
        "append_k_user": ("float32", ["B", 1, "T", SPEC.attention.user_k]),
        "append_v_user": ("float32", ["B", 1, "T", SPEC.attention.d]),
    }
    table = {t["name"]: (t["dtype"], t["axes"]) for t in graphs["decode_items"]["inputs"]}
    assert table["item_long_key"] == ("int32", ["I", 7])
    assert [graph["file"] for graph in graphs.values()] == [f"{name}.onnx" for name in graphs]


def test_is_written_whole_or_not_at_all(folder: Path):
    before = (folder / FILE_NAME).read_bytes()
    unwritable = dataclasses.replace(MANIFEST, timings={"load": object()})
    with pytest.raises(TypeError):
        unwritable.write(folder)
    assert (folder / FILE_NAME).read_bytes() == before
    assert {p.name for p in folder.iterdir()} == {FILE_NAME, *(n.split("/")[0] for n in FILES)}


def test_a_manifest_written_again_is_another_file(folder: Path, tmp_path: Path):
    """A copy of a bundle shares its files with it."""
    os.link(folder / FILE_NAME, tmp_path / "kept")
    before = (tmp_path / "kept").read_bytes()
    MANIFEST.write(folder)
    assert (tmp_path / "kept").read_bytes() == before != (folder / FILE_NAME).read_bytes()

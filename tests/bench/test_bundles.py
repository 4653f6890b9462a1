"""Which bundles may stand beside one another, and what their ways are called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from ckv_testing.bundles import manifest_of
from ckv_testing.exports import Export

from ckv_export.bench.bundles import open_bundles
from ckv_export.contract import EventForm
from ckv_export.errors import InputError
from ckv_export.manifest import POOLS_FILE, Manifest, read_manifest


@pytest.fixture
def manifest(exported: Callable[[str], Export]) -> Manifest:
    return manifest_of(exported("sim"))


@pytest.fixture
def written(
    tmp_path: Path, manifest: Manifest, exported: Callable[[str], Export]
) -> Callable[..., Path]:
    """Write a bundle of the model into a folder, some of its manifest's fields given anew."""

    def write(folder: str, **changes: object) -> Path:
        path = tmp_path / folder
        path.mkdir()
        for file in exported("sim").folder.glob("*.onnx"):
            (path / file.name).write_bytes(file.read_bytes())
        changed = dataclasses.replace(manifest, **changes)
        changed.with_files(path).write(path)
        return path

    return write


def test_labels_are_names_where_those_tell_bundles_apart(written: Callable[..., Path]):
    main, half = written("a", name="one"), written("b", name="half", precision="fp16")
    same = written("c", name="one")
    bundles = open_bundles(main, [half, same])
    assert [b.label for b in bundles] == ["", "half", str(same)]
    assert [b.title("way") for b in bundles] == ["way", "half: way", f"{same}: way"]
    assert [b.manifest.precision for b in bundles] == ["fp32", "fp16", "fp32"]


def test_another_model_is_refused(written: Callable[..., Path]):
    other = written("b", fingerprint="f" * 64)
    with pytest.raises(InputError, match=r"b is of another model \(fingerprint ffffffffffffffff,"):
        open_bundles(written("a"), [other])


def test_other_inputs_are_refused_by_name(written: Callable[..., Path]):
    other = written("b", form=EventForm(embeddings="external"))
    with pytest.raises(InputError, match="take other inputs than those of drawn: ") as refused:
        open_bundles(written("a"), [other])
    added, missing = str(refused.value).split(": ", 1)[1].split(";")[0].split(" instead of ")
    assert {"candidate_embedding", "user_embedding"} <= set(added.split(", "))
    assert {"candidate_item_id", "user_age"} <= set(missing.split(", "))
    assert "append_mask" not in added + missing


def test_other_item_features_are_refused(written: Callable[..., Path]):
    other = written("b", fingerprints={"looked up": "0" * 64})
    with pytest.raises(InputError, match="look up other item features than those of drawn"):
        open_bundles(written("a"), [other])


def test_what_is_no_part_of_a_request_may_differ(written: Callable[..., Path]):
    """Pools are bound."""
    pools = written("b", form=EventForm(pools="float32"))
    (pools / POOLS_FILE).touch()
    read_manifest(pools).with_files(pools).write(pools)
    open_bundles(written("a"), [pools])


def test_a_bundle_beside_itself_is_refused(written: Callable[..., Path]):
    main = written("a")
    with pytest.raises(InputError, match="is given twice"):
        open_bundles(main, [main.parent / "." / "a"])

"""Which bundles may stand beside one another, and what their ways are called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ckv_testing.records import MANIFESTS

from ckv_export.bench.bundles import open_bundles
from ckv_export.contract import EventForm
from ckv_export.errors import InputError
from ckv_export.manifest import POOLS_FILE


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle into a folder, some fields of its manifest given anew; no file is read."""

    def write(folder: str, like: str = "every kind of feature", **changes: Any) -> Path:
        path = tmp_path / folder
        path.mkdir()
        for file in ("prefill.onnx", "decode.onnx", POOLS_FILE):
            (path / file).touch()
        manifest = dataclasses.replace(MANIFESTS[like], **{"name": "drawn"} | changes)
        manifest.with_files(path).write(path)
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


@pytest.mark.parametrize(
    ("form", "added", "missing"),
    [
        ("external embeddings", {"candidate_embedding", "user_embedding"}, {"append_item_id"}),
        ("one id of many features", {"nothing"}, {"event_tags", "candidate_price"}),
    ],
)
def test_other_inputs_are_refused_by_name(
    written: Callable[..., Path], form: str, added: set[str], missing: set[str]
):
    other = written("b", form=MANIFESTS[form].form)
    with pytest.raises(InputError, match="take other inputs than those of drawn: ") as refused:
        open_bundles(written("a"), [other])
    told = str(refused.value).split(": ", 1)[1].split(";")[0].split(" instead of ")
    for names, some in zip(told, (added, missing), strict=True):
        assert some <= set(names.split(", "))
        assert "append_mask" not in names


def test_other_item_features_are_refused(written: Callable[..., Path]):
    other = written("b", fingerprints={"looked up": "0" * 64})
    with pytest.raises(InputError, match="look up other item features than those of drawn"):
        open_bundles(written("a"), [other])


def test_what_is_no_part_of_a_request_may_differ(written: Callable[..., Path]):
    """Pools are bound; a model of one item feature takes it whether it is a key or not."""
    kind = "HSTU with time"
    other = written("b", kind, form=EventForm(item_key="item_id", pools="float32"))
    open_bundles(written("a", kind), [other])


def test_a_bundle_beside_itself_is_refused(written: Callable[..., Path]):
    main = written("a")
    with pytest.raises(InputError, match="is given twice"):
        open_bundles(main, [main.parent / "." / "a"])

"""Which bundles may stand beside one another, and what their ways are called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ckv_testing.records import MANIFESTS

from ckv_export.bench.bundles import open_bundles
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


def test_a_bundle_beside_itself_is_refused(written: Callable[..., Path]):
    main = written("a")
    with pytest.raises(InputError, match="is given twice"):
        open_bundles(main, [main.parent / "." / "a"])

"""What the README shows of records runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.records import MANIFESTS, user

from ckv_export.cache.record import RecordLayout, batch, count

ROOT = Path(__file__).resolve().parents[3]
BLOCK = re.search(
    r"### The cache record.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
)


def calls(layout: RecordLayout, rng) -> tuple[dict, dict, dict, dict]:
    """Inputs and outputs of a prefill of 7 events, and of a decode that appends 2."""
    tensors: tuple[dict, ...] = ({}, {}, {}, {})
    inputs, outputs, request, scored = tensors
    first, new = user(layout, 7, rng), user(layout, 2, rng)
    for field in layout.fields:
        kind, suffix = field.name.split("_", 1)
        entry = kind == "cache"
        (outputs if entry else inputs)[f"{kind if entry else 'event'}_{suffix}"] = first[
            field.name
        ][None]
        (scored if entry else request)[f"append_{suffix}"] = new[field.name][None]
    inputs["event_mask"] = np.ones((1, 7), bool)
    request["append_mask"] = np.ones((1, 2), bool)
    return inputs, outputs, request, scored


@pytest.mark.parametrize("name", ["every kind of feature", "HSTU with time", "item table"])
def test_the_example(name, rng, tmp_path, monkeypatch):
    folder = tmp_path / "engines" / "NAME"
    folder.mkdir(parents=True)
    manifest = MANIFESTS[name]
    for file in (*(f"{g}.onnx" for g in manifest.graph_names), "item_table.safetensors"):
        (folder / file).write_bytes(b"")
    manifest.with_files(folder).write(folder)
    monkeypatch.chdir(tmp_path)
    layout = RecordLayout.of(manifest)
    inputs, outputs, request, scored = calls(layout, rng)
    scope = {"Path": Path, "inputs": inputs, "outputs": outputs}
    assert BLOCK is not None
    exec(BLOCK[1], scope | {"request": request, "scored": scored}, result := {})
    assert count(layout, result["record"]) == 9
    assert result["feeds"].keys() == request.keys() | batch(layout, []).keys()

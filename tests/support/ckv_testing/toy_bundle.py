"""A bundle whose files hold anything: only its manifest is looked at."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ckv_export.contract import (
    AttentionSpec,
    DnnSpec,
    EventForm,
    FeatureSpec,
    ModelSpec,
    Profile,
    Range,
)
from ckv_export.manifest import FILE_NAME, EngineEntry, ItemTable, Manifest

SPEC = ModelSpec(
    kind="sim",
    features=(
        FeatureSpec("item_id", "item", "categorical", 4, vocab_size=9),
        FeatureSpec("tags", "item", "sequence", 4, vocab_size=5, length=3),
        FeatureSpec("age", "user", "numeric", 2),
    ),
    attention=AttentionSpec(8, 2, 2, 8, 10, 0),
    dnn=DnnSpec((6,), ("relu",), True),
    max_len=20,
    window=5,
    options={"topk": 3},
)
FILES = {
    "prefill.onnx": b"prefill",
    "decode.onnx": b"decode" * 1000,
    "decode_items.onnx": b"decode items",
    "item_table.safetensors": b"table",
    "empty": b"",
    "engines/decode.tensorrt_rtx.sm86.engine": bytes(range(256)),
}
ENGINE = EngineEntry(
    "decode", "engines/decode.tensorrt_rtx.sm86.engine", "tensorrt_rtx", "1", ("sm86",),
    {"B": "1:2:3"}, 3, 0.5, profiles=({"B": "1:2:3"},),
)  # fmt: skip
MANIFEST = Manifest(
    name="toy",
    fingerprint="ab" * 32,
    model=SPEC,
    form=EventForm(),
    item_table=ItemTable(SPEC.features[0].vocab_size, 7, "int32"),
    profile=Profile.default(SPEC).replaced(SPEC, {"B": Range(1, 2, 3)}),
    source={"kind": "native", "files": [{"name": "model.pt", "sha256": "cd" * 32, "bytes": 5}]},
    versions={"torch": "2"},
    operators={"ckv": 1, "opset": 20},
    notes=("a note",),
    timings={"load": 0.25},
    parity={"passed": True, "seed": 3, "cases": 2, "worst_score_error": {"pytorch": 1e-7}},
    engines=(ENGINE,),
)


def write_toy(parent: Path) -> Path:
    """Write the bundle into `parent`."""
    folder = parent / "toy"
    for name, data in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    MANIFEST.with_files(folder).write(folder)
    return folder


def data_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / FILE_NAME).read_text())


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in JSON data."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield (*path, key)
            yield from places(value, (*path, key))


def changed(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with one value replaced, or taken out where it is `...`."""
    copied = copy.deepcopy(data)
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copied

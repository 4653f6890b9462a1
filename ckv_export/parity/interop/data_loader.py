"""The bundle's recorded cases as inputs for Polygraphy.

::

    polygraphy run prefill.onnx --onnxrt --data-loader-script polygraphy/data_loader.py
    polygraphy run decode.onnx --onnxrt --data-loader-script polygraphy/data_loader.py:load_decode

Decode is given the entries that the reference computed. Only numpy is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]

_BUNDLE = Path(__file__).resolve().parents[1]
_DTYPES = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "BOOL": "?"}


def load_data() -> Iterator[Arrays]:
    """Inputs of prefill.onnx, case by case: what Polygraphy asks for unless told a name."""
    return load_prefill()


def load_prefill() -> Iterator[Arrays]:
    """Inputs of prefill.onnx: all events of the history, nothing cached before them."""
    inputs, bound = _inputs("prefill")
    for given, expected in _cases():
        yield {t["name"]: _prefill_input(t, given, expected, bound) for t in inputs}


def load_decode() -> Iterator[Arrays]:
    """Inputs of decode.onnx: the newest entries of the cache, as many as the model's window."""
    inputs, bound = _inputs("decode")
    window = _manifest()["model"]["window"]
    for given, expected in _cases():
        events = given["history_mask"].shape[1]
        first = 0 if window is None else max(0, events - (window - 1))
        cache = {n: a[:, :, first:] for n, a in expected.items() if n.startswith("cache_")}
        found = {**bound, **given, **cache}
        yield {t["name"]: np.ascontiguousarray(found[t["name"]]) for t in inputs}


def load_decode_items() -> Iterator[Arrays]:
    """Inputs of decode_items.onnx, the item table among them."""
    inputs, bound = _inputs("decode_items")
    found = {**bound, **_safetensors("item_table.safetensors")}
    for given, _ in _cases():
        yield {t["name"]: np.ascontiguousarray({**found, **given}[t["name"]]) for t in inputs}


def _prefill_input(tensor: Arrays, given: Arrays, expected: Arrays, bound: Arrays) -> Any:
    name = tensor["name"]
    group, _, rest = name.partition("_")
    if group == "event":
        return np.ascontiguousarray(given[f"history_{rest}"])
    if group != "past":
        return bound[name]
    past = expected.get(f"cache_{rest}")
    if past is not None:
        return np.ascontiguousarray(past[:, :, :0])
    return np.ascontiguousarray(given[f"history_{rest}"][:, :0])


def _manifest() -> Any:
    return json.loads((_BUNDLE / "manifest.json").read_text())


def _inputs(graph: str) -> tuple[list[Arrays], Arrays]:
    """A graph's inputs, and the pools that it takes, if it takes any."""
    inputs = _manifest()["graphs"][graph]["inputs"]
    takes_pools = any(t["name"].startswith("pool_") for t in inputs)
    return inputs, _safetensors("pools.safetensors") if takes_pools else {}


def _cases() -> Iterator[tuple[Arrays, Arrays]]:
    """Inputs and the reference's outputs of every recorded case."""
    with np.load(_BUNDLE / "parity_cases.npz", allow_pickle=False) as file:
        for number in range(len(file["names"])):
            yield tuple(  # type: ignore[misc]
                {
                    name.split("/", 2)[2]: file[name]
                    for name in file.files
                    if name.startswith(f"{number}/{group}/")
                }
                for group in ("in", "out")
            )


def _safetensors(name: str) -> Arrays:
    """Tensors of a safetensors file: 8 bytes of header size, JSON, then the data."""
    content = (_BUNDLE / name).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    return {
        tensor: np.frombuffer(
            content[start + about["data_offsets"][0] : start + about["data_offsets"][1]],
            _DTYPES[about["dtype"]],
        ).reshape(about["shape"])
        for tensor, about in header.items()
    }

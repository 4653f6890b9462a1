"""ONNX models to files: weights inside, or beside in one file that all graphs share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

WEIGHTS_FILE = "weights.bin"

INLINE_LIMIT = 128 * 2**20
"""Models of at most this many bytes of weights are single files. Protobuf itself ends at 2 GiB;
well below, an inline copy per graph only costs disk, and memory three times over while written."""

_LEAST_EXTERNAL = 64 * 2**10
# Page-aligned offsets let a runtime map the file instead of reading it.
_ALIGNMENT = 2**16


def save_models(models: Mapping[str, ir.Model], folder: Path) -> list[Path]:
    """Write ``<name>.onnx`` for each model, and `WEIGHTS_FILE` if one exceeds `INLINE_LIMIT`.

    Returns the files written. Weights that graphs have in common are stored once. Peak memory
    beyond the weights themselves is the size of the largest .onnx file, twice.
    """
    files = [folder / f"{name}.onnx" for name in models]
    if any(_weight_bytes(model) > INLINE_LIMIT for model in models.values()):
        with (folder / WEIGHTS_FILE).open("wb") as out:
            store = _WeightStore(out)
            for model in models.values():
                store.move_weights(model)
        files.append(folder / WEIGHTS_FILE)
    for name, model in models.items():
        ir.save(model, folder / f"{name}.onnx")
    return files


def _tensors(model: ir.Model) -> Sequence[tuple[ir.Value, ir.TensorProtocol]]:
    values = model.graph.initializers.values()
    return [(v, v.const_value) for v in values if v.const_value is not None]


def _weight_bytes(model: ir.Model) -> int:
    return sum(tensor.nbytes for _, tensor in _tensors(model))


class _WeightStore:
    """Appends tensors to an open file, each content once."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.offsets: dict[str, int] = {}

    def move_weights(self, model: ir.Model) -> None:
        """Replace the large initializers of `model` by references into the file."""
        for value, tensor in _tensors(model):
            if tensor.nbytes >= _LEAST_EXTERNAL:
                value.const_value = ir.ExternalTensor(
                    WEIGHTS_FILE,
                    self._offset(tensor),
                    tensor.nbytes,
                    ir.DataType(tensor.dtype),
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=str(value.name),
                )

    def _offset(self, tensor: ir.TensorProtocol) -> int:
        data = np.ascontiguousarray(tensor.numpy()).view(np.uint8).reshape(-1).data
        key = hashlib.sha256(data).hexdigest()
        if key not in self.offsets:
            self.out.seek(-self.out.tell() % _ALIGNMENT, 1)
            self.offsets[key] = self.out.tell()
            self.out.write(data)
        return self.offsets[key]

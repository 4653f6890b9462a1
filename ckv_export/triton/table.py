"""An item table moved into the graph that takes it.

Triton gives every input of a batching model a batch axis, and a table has none; as constants of
the graph it is also loaded once, and not sent with every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ckv_export.contract import GraphSpec

DATA_FILE = "item_table.bin"
_ALIGNED = 64


def without_table(io: GraphSpec, table: Mapping[str, object]) -> GraphSpec:
    """`io` without the inputs that `table` gives."""
    return GraphSpec(io.name, tuple(t for t in io.inputs if t.name not in table), io.outputs)


def bake_table(graph: Path, table: Mapping[str, NDArray[np.generic]], out: Path) -> None:
    """Write `graph` with the inputs of `table` as constants to `out`, their data beside it.

    Weights that `graph` keeps in another file stay there: it must come to lie beside `out` too.
    """
    import onnx
    from onnx import helper

    model = onnx.load(str(graph), load_external_data=False)
    kept = [value for value in model.graph.input if value.name not in table]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    with (out.parent / DATA_FILE).open("wb") as data:
        for name, values in table.items():
            data.write(b"\0" * (-data.tell() % _ALIGNED))
            raw = np.ascontiguousarray(values)
            tensor = model.graph.initializer.add(
                name=name, data_type=helper.np_dtype_to_tensor_dtype(raw.dtype), dims=raw.shape
            )
            tensor.data_location = onnx.TensorProto.EXTERNAL
            place = {"location": DATA_FILE, "offset": data.tell(), "length": raw.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            data.write(raw.tobytes())
    onnx.save(model, str(out))

"""Item table and pools moved into the graph that takes them.

Triton gives every input of a batching model a batch axis, and these have none; as constants of
the graph they are also loaded once, and not sent with every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ckv_export.contract import GraphSpec

DATA_FILE = "constants.bin"
_ALIGNED = 64


def without_constants(io: GraphSpec) -> GraphSpec:
    """`io` without the inputs that are the same for all users."""
    return GraphSpec(io.name, tuple(t for t in io.inputs if t.axes[:1] == ("B",)), io.outputs)


def bake(graph: Path, given: Mapping[str, NDArray[np.generic]], out: Path) -> None:
    """Write `graph` with its inputs of `given` as constants to `out`, their data beside it.

    Weights that `graph` keeps in another file stay there: it must come to lie beside `out` too.
    """
    import onnx
    from onnx import helper

    model = onnx.load(str(graph), load_external_data=False)
    taken = {value.name for value in model.graph.input} & set(given)
    kept = [value for value in model.graph.input if value.name not in taken]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    with (out.parent / DATA_FILE).open("wb") as data:
        for name, values in given.items():
            if name not in taken:
                continue
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

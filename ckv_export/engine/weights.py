"""The weights of a graph that training decides: those an engine can exchange.

An ONNX initializer keeps its name in the network. Learned tensors are named by the model's modules,
``model.attention.k.pool``; what the exporter made, such as ``val_38``, is not: constants that the
optimizer may fold, some of them into shapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ckv_export.engine.backends import Backend
from ckv_export.engine.files import read_onnx
from ckv_export.engine.messages import Messages
from ckv_export.errors import EngineError

_LEARNED = "model."
_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16")


def learned_weights(onnx_file: Path) -> tuple[str, ...]:
    """Names of the floating-point weights that training decides, in the file's order."""
    return tuple(_learned(_initializers(read_onnx(onnx_file)).values()))


def mark_refittable(network: Any, onnx_file: Path, backend: Backend, messages: Messages) -> None:
    """Mark every learned weight of a network parsed from `onnx_file`.

    Raises `EngineError` for one that the network does not have under its name: an engine that keeps
    an old weight among new ones would be wrong without a word.
    """
    for name in learned_weights(onnx_file):
        if not network.mark_weights_refittable(name):
            reason = messages.first_error() or "the library gives no reason"
            raise EngineError(
                f"{backend.label} can't make the weight {name!r} refittable: {reason}"
            )


def changed_weights(old: Path, new: Path) -> frozenset[str]:
    """Names of the learned weights whose values differ between two exports of one graph.

    Raises `EngineError` where the graphs differ in anything else: an engine of the one can't become
    an engine of the other by new weights alone.
    """
    before, after = read_onnx(old), read_onnx(new)
    _require_same_nodes(before, after, old, new)
    tensors, others = _initializers(before), _initializers(after)
    _require_same_tensors(tensors, others, old, new)
    pairs = {name: (tensor, others[name]) for name, tensor in tensors.items()}
    differing = {
        name
        for name, (tensor, other) in pairs.items()
        if not _equal_bytes(tensor, other, old.parent, new.parent)
    }
    constants = sorted(differing - set(_learned(tensors.values())))
    if constants:
        raise EngineError(
            f"{new} has other constants than {old} ({', '.join(constants)}), and only learned "
            "floating-point weights can be refitted: run ckv-export build"
        )
    return frozenset(differing)


def _learned(tensors: Iterable[Any]) -> list[str]:
    import onnx

    floats = {onnx.TensorProto.DataType.Value(name) for name in _FLOATS}
    return [t.name for t in tensors if t.name.startswith(_LEARNED) and t.data_type in floats]


def _initializers(model: Any) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _require_same_nodes(before: Any, after: Any, old: Path, new: Path) -> None:
    parts = {
        "inputs": (before.graph.input, after.graph.input),
        "outputs": (before.graph.output, after.graph.output),
        "nodes": (before.graph.node, after.graph.node),
        "functions": (before.functions, after.functions),
        "operator sets": (before.opset_import, after.opset_import),
    }
    odd = [name for name, (a, b) in parts.items() if list(a) != list(b)]
    if odd:
        raise EngineError(
            f"{new} is another graph than {old} (it differs in its {', '.join(odd)}), and a refit "
            "exchanges weights alone: run ckv-export build"
        )


def _require_same_tensors(
    before: dict[str, Any], after: dict[str, Any], old: Path, new: Path
) -> None:
    kinds = [{n: (t.data_type, tuple(t.dims)) for n, t in all_.items()} for all_ in (before, after)]
    odd = sorted(n for n in before.keys() | after.keys() if kinds[0].get(n) != kinds[1].get(n))
    if odd:
        raise EngineError(
            f"{new} is another graph than {old} (the shape or type of {', '.join(odd)} differs, or "
            "one of the two has no such tensor), and a refit exchanges weights alone: run "
            "ckv-export build"
        )


def _equal_bytes(one: Any, other: Any, one_folder: Path, other_folder: Path) -> bool:
    from onnx import numpy_helper

    values = [
        np.ascontiguousarray(numpy_helper.to_array(tensor, str(folder)))
        for tensor, folder in ((one, one_folder), (other, other_folder))
    ]
    # By bytes: NaN is itself, and bf16 is no number of numpy's.
    return values[0].tobytes() == values[1].tobytes()

"""Give nodes the names of the modules they come from, as profilers and engines show them."""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"


def run(model: ir.Model) -> None:
    """Requires: the exporter's scope metadata, if any, still on the nodes.

    Ensures: every node is called ``module/path/OpType_N``, N counting that name in graph order.
    """
    seen: Counter[str] = Counter()
    for node in model.graph:
        name = "/".join([*_modules(node), node.op_type])
        node.name = f"{name}_{seen[name]}"
        seen[name] += 1


def _modules(node: ir.Node) -> list[str]:
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    module = scopes[-2] if len(scopes) >= 2 and not scopes[0] else ""
    return [part for part in module.removeprefix("model.").split(".") if part]

"""Put the bodies of our operators into the model that uses them."""

from __future__ import annotations

import onnx_ir as ir

from ckv_export.onnx_export import functions


def run(model: ir.Model) -> None:
    """Requires: nodes of domain ``ckv`` whose operators `functions.bodies` knows.

    Ensures: a model-local function for each of them, and the domain among the opset imports. The
    exporter inlines functions it is given, so they come last.
    """
    used = {(node.domain, node.op_type) for node in model.graph}
    for function in functions.bodies():
        if (function.domain, function.name) in used:
            model.functions[function.identifier()] = function
            model.opset_imports[functions.DOMAIN] = functions.DOMAIN_VERSION

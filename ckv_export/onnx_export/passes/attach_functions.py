"""Put the bodies of our operators into the model that uses them."""

from __future__ import annotations

import onnx_ir as ir

from ckv_export.contract import AttentionSpec
from ckv_export.model import ops
from ckv_export.onnx_export import functions


def run(model: ir.Model, spec: AttentionSpec, precision: str = "fp32") -> None:
    """Requires: nodes of domain ``ckv``; attention nodes of the sizes of `spec` and of `precision`.

    Ensures: a model-local function for each operator used, also by another's body, and the domain
    among the opset imports. The exporter inlines functions it is given, so they come last.
    """
    used = {node.op_type for node in model.graph if node.domain == functions.DOMAIN}
    if not used:
        return
    scale = ops.attention_scale(spec.d, spec.num_heads, spec.use_scale)
    width = spec.d // spec.num_heads
    bodies = [functions.gather_body()]
    for name in sorted(used - {"PoolGatherConcat"}):
        bodies.append(functions.attention_body(name, spec.num_heads, width, scale, precision))
    for body in bodies:
        model.functions[body.identifier()] = body
    model.opset_imports[functions.DOMAIN] = functions.DOMAIN_VERSION

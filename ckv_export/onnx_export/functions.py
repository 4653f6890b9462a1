"""The ONNX domain ``ckv``: operators that are functions of standard ones.

A node of the domain runs anywhere, because its function body travels in the file. TensorRT
takes our plugin instead where one is registered under the node's ``plugin_namespace``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript
import torch

DOMAIN = "ckv"
DOMAIN_VERSION = 1
OPSET = 20
PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1"}

# Formal names are unlike any tensor name of a graph: inliners need not rename them.
_POOL_GATHER_CONCAT = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
PoolGatherConcat <plugin_namespace, plugin_version> (ckv_pool, ckv_index, ckv_user) => (ckv_vector)
{{
    ckv_rows = Gather <axis = 0> (ckv_pool, ckv_index)
    ckv_vector = Concat <axis = -1> (ckv_rows, ckv_user)
}}
"""


def bodies() -> tuple[ir.Function, ...]:
    """The function bodies of the domain."""
    return (ir.serde.deserialize_function(onnx.parser.parse_function(_POOL_GATHER_CONCAT)),)


def _schema() -> onnx.defs.OpSchema:
    schema = onnx.defs.OpSchema
    floats = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
    kinds = dict.fromkeys(PLUGIN_ATTRIBUTES, schema.AttrType.STRING)
    return schema(
        "PoolGatherConcat",
        DOMAIN,
        DOMAIN_VERSION,
        doc="concat(pool[index], user) on the last axis",
        inputs=[
            schema.FormalParameter("pool", "T"),
            schema.FormalParameter("index", "tensor(int32)"),
            schema.FormalParameter("user", "T"),
        ],
        outputs=[schema.FormalParameter("vector", "T")],
        type_constraints=[("T", floats, "")],
        attributes=[schema.Attribute(name, kind, "") for name, kind in kinds.items()],
    )


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export` needs to emit our operators as bare nodes."""
    op = onnxscript.values.Op(
        onnxscript.values.Opset(DOMAIN, DOMAIN_VERSION), "PoolGatherConcat", _schema()
    )

    def pool_gather_concat(pool: Any, index: Any, user: Any) -> Any:
        return op(pool, index, user, **PLUGIN_ATTRIBUTES)

    return {torch.ops.ckv.pool_gather_concat.default: pool_gather_concat}

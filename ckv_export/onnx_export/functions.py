"""The ONNX domain ``ckv``: operators that are functions of standard ones.

A node of the domain runs anywhere, because its function body travels in the file. TensorRT
takes our plugin instead where one is registered under the node's ``plugin_namespace``.
"""

from __future__ import annotations

import re
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

ROWS = ("pool_k", "index_k", "user_k", "pool_v", "index_v", "user_v")
INPUTS = {
    "PoolGatherConcat": ("pool", "index", "user"),
    "PooledAttention": ("query", *ROWS, "mask"),
    "PooledPointwiseAttention": ("query", *ROWS, "bias", "visible", "count"),
}
"""Operator -> its inputs. The attention operators also have ``num_heads`` and ``scale``."""

_INPUT_TYPES = {
    **dict.fromkeys(("index", "index_k", "index_v", "mask", "visible"), "tensor(int32)"),
    "count": "tensor(float)",
}
"""Inputs that are not of the element type T; a count above 2048 is not exact in 16 bits."""

ELEMENT_TYPES = {
    "fp32": onnx.TensorProto.FLOAT,
    "fp16": onnx.TensorProto.FLOAT16,
    "bf16": onnx.TensorProto.BFLOAT16,
}

_PLUGIN = 'plugin_namespace = "ckv", plugin_version = "1"'

# Formal names are unlike any tensor name of a graph: inliners need not rename them.
_POOL_GATHER_CONCAT = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
PoolGatherConcat <plugin_namespace, plugin_version> (ckv_pool, ckv_index, ckv_user) => (ckv_vector)
{{
    ckv_rows = Gather <axis = 0> (ckv_pool, ckv_index)
    ckv_vector = Concat <axis = -1> (ckv_rows, ckv_user)
}}
"""

# The head split is written into the body: a size of -1 can't be inferred where N is 0.
# Narrow and Wide stand for casts to T and to fp32: see `_with_casts`.
_ATTENTION = """
<domain: "{domain}", opset_import: ["" : {opset}, "{domain}" : {version}]>
{name} <plugin_namespace, plugin_version, num_heads, scale> ({inputs}) => (ckv_out)
{{
    ckv_whole_key = {domain}.PoolGatherConcat <{plugin}> (ckv_pool_k, ckv_index_k, ckv_user_k)
    {key}
    ckv_value = {domain}.PoolGatherConcat <{plugin}> (ckv_pool_v, ckv_index_v, ckv_user_v)
    ckv_head_axis = Constant <value_ints = [1]> ()
    ckv_factor = Constant <value_float = {scale}> ()
    ckv_factor_narrow = Narrow (ckv_factor)
    ckv_scaled = Mul (ckv_query, ckv_factor_narrow)
    {split}
    ckv_products = MatMul (ckv_query_heads, ckv_key_heads)
    ckv_logits = Wide (ckv_products)
    {weights}
    ckv_weights_narrow = Narrow (ckv_weights)
    ckv_heads = MatMul (ckv_weights_narrow, ckv_value_heads)
    {merged}
    {result}
}}
"""

_SPLIT = """ckv_split = Constant <value_ints = [0, 0, {heads}, {width}]> ()
    ckv_merge = Constant <value_ints = [0, 0, {total}]> ()
    ckv_query_split = Reshape (ckv_scaled, ckv_split)
    ckv_query_heads = Transpose <perm = [0, 2, 1, 3]> (ckv_query_split)
    ckv_key_split = Reshape (ckv_key, ckv_split)
    ckv_key_heads = Transpose <perm = [0, 2, 3, 1]> (ckv_key_split)
    ckv_value_split = Reshape (ckv_value, ckv_split)
    ckv_value_heads = Transpose <perm = [0, 2, 1, 3]> (ckv_value_split)"""
_MERGED = """ckv_turned = Transpose <perm = [0, 2, 1, 3]> (ckv_heads)
    ckv_merged = Reshape (ckv_turned, ckv_merge)"""

# One head takes no copy to split or merge, and a transposition that a product takes in its stride.
_SPLIT_ONE = """ckv_query_heads = Unsqueeze (ckv_scaled, ckv_head_axis)
    ckv_key_head = Unsqueeze (ckv_key, ckv_head_axis)
    ckv_key_heads = Transpose <perm = [0, 1, 3, 2]> (ckv_key_head)
    ckv_value_heads = Unsqueeze (ckv_value, ckv_head_axis)"""
_MERGED_ONE = "ckv_merged = Squeeze (ckv_heads, ckv_head_axis)"

# A masked key is made zero, so that adding -1e9 gives exactly that logit. An addition passes over
# the logits of all heads in a third of the time that ONNX Runtime takes for a broadcast Where.
_MASKED_KEY = """ckv_last_axis = Constant <value_ints = [2]> ()
    ckv_bool = Cast <to = 9> (ckv_mask)
    ckv_real = Cast <to = 1> (ckv_bool)
    ckv_real_narrow = Narrow (ckv_real)
    ckv_real_column = Unsqueeze (ckv_real_narrow, ckv_last_axis)
    ckv_key = Mul (ckv_whole_key, ckv_real_column)"""

_WEIGHTS = {
    "PooledAttention": (
        _MASKED_KEY,
        """
    ckv_query_axes = Constant <value_ints = [1, 2]> ()
    ckv_one = Constant <value_float = 1.0> ()
    ckv_masked_logit = Constant <value_float = -1000000000.0> ()
    ckv_unreal = Sub (ckv_one, ckv_real)
    ckv_added = Mul (ckv_unreal, ckv_masked_logit)
    ckv_added_row = Unsqueeze (ckv_added, ckv_query_axes)
    ckv_masked = Add (ckv_logits, ckv_added_row)
    ckv_weights = Softmax <axis = -1> (ckv_masked)
    """,
        "ckv_out = Identity (ckv_merged)",
    ),
    "PooledPointwiseAttention": (
        "ckv_key = Identity (ckv_whole_key)",
        """
    ckv_last_axis = Constant <value_ints = [2]> ()
    ckv_bias_wide = Wide (ckv_bias)
    ckv_bias_heads = Unsqueeze (ckv_bias_wide, ckv_head_axis)
    ckv_biased = Add (ckv_logits, ckv_bias_heads)
    ckv_gate = Sigmoid (ckv_biased)
    ckv_silu = Mul (ckv_biased, ckv_gate)
    ckv_bool = Cast <to = 9> (ckv_visible)
    ckv_real = Cast <to = 1> (ckv_bool)
    ckv_seen = Unsqueeze (ckv_real, ckv_head_axis)
    ckv_weights = Mul (ckv_silu, ckv_seen)
    """,
        """ckv_total = Wide (ckv_merged)
    ckv_divisor = Unsqueeze (ckv_count, ckv_last_axis)
    ckv_mean = Div (ckv_total, ckv_divisor)
    ckv_out = Narrow (ckv_mean)""",
    ),
}


def gather_body() -> ir.Function:
    """``PoolGatherConcat``: Gather and Concat."""
    return ir.serde.deserialize_function(onnx.parser.parse_function(_POOL_GATHER_CONCAT))


def attention_body(
    name: str, heads: int, width: int, scale: float, precision: str = "fp32"
) -> ir.Function:
    """An attention operator for that many heads of `width` each, around two gathers.

    T is the element type of `precision`; between the two products it computes in fp32.
    """
    key, weights, result = _WEIGHTS[name]
    split, merged = (_SPLIT_ONE, _MERGED_ONE) if heads == 1 else (_SPLIT, _MERGED)
    text = _ATTENTION.format(
        domain=DOMAIN,
        opset=OPSET,
        version=DOMAIN_VERSION,
        plugin=_PLUGIN,
        name=name,
        inputs=", ".join(f"ckv_{i}" for i in INPUTS[name]),
        split=split.format(heads=heads, width=width, total=heads * width),
        scale=repr(float(scale)),
        key=key,
        weights=weights.strip(),
        merged=merged,
        result=result,
    )
    return ir.serde.deserialize_function(onnx.parser.parse_function(_with_casts(text, precision)))


_CAST_LINE = re.compile(r"^ *(\w+) = (Narrow|Wide) \((\w+)\)\n", re.MULTILINE)


def _with_casts(text: str, precision: str) -> str:
    """`text` with its Narrow and Wide as casts; in fp32 they vanish, and what they would give."""
    if precision != "fp32":
        narrow = f"Cast <to = {ELEMENT_TYPES[precision]}> ("
        return text.replace("Narrow (", narrow).replace("Wide (", "Cast <to = 1> (")
    while line := _CAST_LINE.search(text):
        given, _, source = line.groups()
        text = re.sub(rf"\b{given}\b", source, text[: line.start()] + text[line.end() :])
    return text


def _schema(name: str) -> onnx.defs.OpSchema:
    schema = onnx.defs.OpSchema
    floats = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
    kinds = dict.fromkeys(PLUGIN_ATTRIBUTES, schema.AttrType.STRING)
    if name != "PoolGatherConcat":
        kinds |= {"num_heads": schema.AttrType.INT, "scale": schema.AttrType.FLOAT}
    return schema(
        name,
        DOMAIN,
        DOMAIN_VERSION,
        inputs=[schema.FormalParameter(i, _INPUT_TYPES.get(i, "T")) for i in INPUTS[name]],
        outputs=[schema.FormalParameter("out", "T")],
        type_constraints=[("T", floats, "")],
        attributes=[schema.Attribute(attribute, kind, "") for attribute, kind in kinds.items()],
    )


def _op(name: str) -> Callable[..., Any]:
    opset = onnxscript.values.Opset(DOMAIN, DOMAIN_VERSION)
    op: Callable[..., Any] = onnxscript.values.Op(opset, name, _schema(name))
    return op


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export` needs to emit our operators as bare nodes."""
    gather = _op("PoolGatherConcat")

    def pool_gather_concat(pool: Any, index: Any, user: Any) -> Any:
        return gather(pool, index, user, **PLUGIN_ATTRIBUTES)

    def attention(name: str) -> Callable[..., Any]:
        op = _op(name)

        def emit(*inputs: Any) -> Any:
            *tensors, num_heads, scale = inputs
            return op(*tensors, num_heads=num_heads, scale=scale, **PLUGIN_ATTRIBUTES)

        return emit

    return {
        torch.ops.ckv.pool_gather_concat.default: pool_gather_concat,
        torch.ops.ckv.pooled_attention.default: attention("PooledAttention"),
        torch.ops.ckv.pooled_pointwise_attention.default: attention("PooledPointwiseAttention"),
    }

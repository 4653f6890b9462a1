"""The operators of ONNX domain ``ckv``: all that reads a pool.

Each is one node in an exported graph, whose function body (`onnx_export.functions`) is the
computation given here, and which a TensorRT plugin of the same name may take over. Outside of an
export models call the computation itself (`in_place`): torch.compile can't look into an operator.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ckv_export.model import ops


def gather_concat(pool: Tensor, index: Tensor, user: Tensor) -> Tensor:
    """``concat(pool[index], user)``: [M, d_g], int32 [B, N], [B, N, d_u] -> [B, N, d]."""
    return torch.cat([pool[index.long()], user], dim=-1)


pool_gather_concat = torch.library.custom_op("ckv::pool_gather_concat", mutates_args=())(
    gather_concat
)


@pool_gather_concat.register_fake
def _(pool: Tensor, index: Tensor, user: Tensor) -> Tensor:
    return user.new_empty((*index.shape, pool.shape[1] + user.shape[-1]))


def attend(
    query: Tensor,
    pool_k: Tensor,
    index_k: Tensor,
    user_k: Tensor,
    pool_v: Tensor,
    index_v: Tensor,
    user_v: Tensor,
    mask: Tensor,
    num_heads: int,
    scale: float,
) -> Tensor:
    """Softmax attention of query [B, C, d] over pooled keys and values: [B, C, d].

    Keys and values as `gather_concat` makes them; mask int32 [B, N], 0 gives a logit of -1e9.
    `scale` multiplies ``q . k``.
    """
    key = gather_concat(pool_k, index_k, user_k)
    value = gather_concat(pool_v, index_v, user_v)
    logits = ops.attention_logits(query * scale, key, num_heads)
    logits = torch.where(mask[:, None, None, :] != 0, logits, ops.MASKED)
    return ops.weighted_values(logits, value, num_heads).contiguous()


def attend_pointwise(
    query: Tensor,
    pool_k: Tensor,
    index_k: Tensor,
    user_k: Tensor,
    pool_v: Tensor,
    index_v: Tensor,
    user_v: Tensor,
    bias: Tensor,
    visible: Tensor,
    count: Tensor,
    num_heads: int,
    scale: float,
) -> Tensor:
    """HSTU's attention of query [B, C, d] over pooled keys and values: [B, C, d].

    Weights ``silu(scale q . k + bias)`` where visible, else 0, divided by count: bias float and
    visible int32 [B, C, N], count float [B, C].
    """
    key = gather_concat(pool_k, index_k, user_k)
    value = gather_concat(pool_v, index_v, user_v)
    logits = ops.attention_logits(query * scale, key, num_heads)
    return ops.pointwise_values(logits, value, bias, visible != 0, count, num_heads).contiguous()


pooled_attention = torch.library.custom_op("ckv::pooled_attention", mutates_args=())(attend)
pooled_pointwise_attention = torch.library.custom_op(
    "ckv::pooled_pointwise_attention", mutates_args=()
)(attend_pointwise)


@pooled_attention.register_fake
@pooled_pointwise_attention.register_fake
def _(query: Tensor, *_rest: object) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def in_place(computation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`computation` as models call it: its operator within an export, otherwise itself."""
    operator: Callable[..., Tensor] = _OPERATORS[computation]

    def call(*inputs: object) -> Tensor:
        chosen = operator if torch.compiler.is_exporting() else computation
        return chosen(*inputs)

    return call


_OPERATORS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    gather_concat: pool_gather_concat,
    attend: pooled_attention,
    attend_pointwise: pooled_pointwise_attention,
}

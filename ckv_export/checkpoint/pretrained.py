"""FuxiCTR's pretrained embeddings, folded into one plain table."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from ckv_export.checkpoint.facts import Facts
from ckv_export.checkpoint.transfer import Transfer
from ckv_export.errors import CheckpointError
from ckv_export.model.shapes import shape_text

USAGES = ("init", "sum", "concat")
ROWS_AT_ONCE = 65536


def folded_table(transfer: Transfer, prefix: str, feature: Facts) -> Tensor:
    """Return the table [vocab, width] that gives what the stored parts give together.

    With P the projection, if any, pre [vocab, pretrain_dim] and id [vocab, width] the two
    tables, row i is P(pre) (usage "init"), P(pre) + id ("sum") or P([pre, id]) ("concat");
    id, and pre too unless it is frozen, is zero for i above `oov_idx`. Beside the result
    only a slice of it is held at a time. Raises `CheckpointError` on a missing part, or on
    parts that don't fit.
    """
    usage = feature.optional("pretrain_usage", str) or "init"
    if usage not in USAGES:
        raise CheckpointError(
            f"{feature.where}: pretrain_usage must be {', '.join(USAGES)}, got {usage!r}"
        )
    pre = transfer.take(prefix + "pretrain_embedding.weight", ndim=2)
    own = None if usage == "init" else transfer.take(prefix + "id_embedding.weight", ndim=2)
    weight, bias = _projection(transfer, prefix, needed=usage == "concat")
    width = _width(prefix, usage, pre, own, weight)
    frozen, last = feature.need("freeze_emb", bool), feature.need("oov_idx", int)
    if own is None and weight is None and frozen:
        return pre
    table = torch.empty(pre.shape[0], width)
    for start in range(0, pre.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        id_rows = None if own is None else _known_rows(own, rows, last)
        pre_rows = pre[rows] if frozen else _known_rows(pre, rows, last)
        table[rows] = _combined(usage, pre_rows, id_rows, weight, bias)
    return table


def _projection(
    transfer: Transfer, prefix: str, needed: bool
) -> tuple[Tensor | None, Tensor | None]:
    """P as weight and bias; older FuxiCTR has a bias there."""
    names = prefix + "proj.weight", prefix + "proj.bias"
    if not needed and not any(name in transfer for name in names):
        return None, None
    weight = transfer.take(names[0], ndim=2)
    if names[1] not in transfer:
        return weight, None
    bias = transfer.take(names[1], ndim=1)
    if len(bias) != len(weight):
        raise CheckpointError(
            f"tensor {names[1]!r} must be {shape_text((len(weight),))}, got "
            f"{shape_text((len(bias),))}: it is added to what the projection returns"
        )
    return weight, bias


def _width(prefix: str, usage: str, pre: Tensor, own: Tensor | None, weight: Tensor | None) -> int:
    """Return the width of the result; raise `CheckpointError` unless the parts fit together."""
    rows, inner = pre.shape
    width = inner if weight is None else weight.shape[0]
    if own is not None and tuple(own.shape) != (rows, width):
        raise CheckpointError(
            f"tensor {prefix + 'id_embedding.weight'!r} must be {shape_text((rows, width))}, "
            f"got {shape_text(tuple(own.shape))}: it is added to or joined with pretrained rows"
        )
    inner += width if usage == "concat" else 0
    if weight is not None and weight.shape[1] != inner:
        raise CheckpointError(
            f"tensor {prefix + 'proj.weight'!r} must be {shape_text((width, inner))}, "
            f"got {shape_text(tuple(weight.shape))}: it reads the pretrained rows ({usage})"
        )
    return width


def _known_rows(table: Tensor, rows: slice, last: int) -> Tensor:
    """`rows` of `table`, zero from `last` + 1 on: those ids were unknown in training."""
    part = table[rows].clone()
    part[max(0, last + 1 - rows.start) :] = 0
    return part


def _combined(
    usage: str, pre: Tensor, own: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    if usage == "concat" and own is not None:
        pre = torch.cat([pre, own], dim=-1)
    out = pre if weight is None else linear(pre, weight, bias)
    return out + own if usage == "sum" and own is not None else out

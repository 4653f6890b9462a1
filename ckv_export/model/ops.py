"""Tensor operations that stand in several models, in a form every runtime computes alike.

They are written so that ties and empty axes come out the same whatever a runtime's sort or softmax
does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MASKED = -1e9
"""Logit of a masked event: it still counts where every event is masked."""

EXCLUDED = torch.finfo(torch.float32).min
"""Logit of an event that was not selected: its weight is exactly 0 beside any other."""


def first_position(hits: Tensor) -> Tensor:
    """Position of the first True of bool [..., N] as int32 [...]; N where there is none."""
    size = hits.shape[-1]
    positions = torch.arange(size, dtype=torch.int32, device=hits.device)
    return torch.where(hits, positions, size).amin(-1).to(torch.int32)


def first_argmax(logits: Tensor, groups: int) -> Tensor:
    """Position of the largest of logits [..., M] as int32 [...]; the lowest position wins a tie.

    No runtime's argmax is trusted with ties (an all-zero event ties all rows): the first of
    `groups` equal groups that holds the maximum is found, then the first place inside it. Only
    the group maxima pass over all M logits. `groups` must divide M.
    """
    grouped = logits.unflatten(-1, (groups, logits.shape[-1] // groups))
    peaks = grouped.amax(-1)
    best = peaks.amax(-1, keepdim=True)
    # NaN equals nothing, so an event of NaN has no best group: don't read beyond the last one.
    group = first_position(peaks == best).clamp(max=groups - 1)
    wanted = group.long()[..., None, None].expand(*group.shape, 1, grouped.shape[-1])
    inside = first_position(grouped.gather(-2, wanted).squeeze(-2) == best)
    return group * grouped.shape[-1] + inside


def signs(bits: Tensor) -> Tensor:
    """+1.0 where bool `bits` is True, else -1.0."""
    return torch.where(bits, 1.0, -1.0)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, d] -> [B, H, N, d / H]."""
    if heads == 1:  # nothing to turn: no runtime has to find that out
        return x.unsqueeze(1)
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, N, w] -> [B, N, H * w]."""
    return x.squeeze(1) if x.shape[1] == 1 else x.transpose(1, 2).flatten(2)


def widened(x: Tensor) -> Tensor:
    """`x` in fp32 if it is in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def attention_logits(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """The products q k^T of each head of query [B, C, d] and key [B, N, d]: [B, H, C, N].

    In fp32 at least, though the product may be in half precision.
    """
    return widened(split_heads(query, heads) @ split_heads(key, heads).transpose(-1, -2))


def masked_logits(query: Tensor, key: Tensor, mask: Tensor, heads: int) -> Tensor:
    """`attention_logits` where bool mask [B, N], else `MASKED`: [B, H, C, N].

    A masked key is made zero, so that adding `MASKED` to its logit gives exactly that. One addition
    passes over all heads in a third of the time that ONNX Runtime takes for a broadcast where.
    """
    logits = attention_logits(query, masked_keys(key, mask), heads)
    return logits + masked_row(mask).unsqueeze(1)


def masked_keys(key: Tensor, mask: Tensor) -> Tensor:
    """key [B, N, d], zero where bool mask [B, N] is False."""
    return key * mask.to(key.dtype).unsqueeze(-1)


def masked_row(mask: Tensor) -> Tensor:
    """What to add to the fp32 logits of `masked_keys`: [B, 1, N], 0.0 where mask, else `MASKED`."""
    return ((1.0 - mask.to(torch.float32)) * MASKED).unsqueeze(1)


def attention_scale(width: int, heads: int, scaled: bool) -> float:
    """What q k^T is multiplied by: 1 / sqrt(width of a head), or 1."""
    return float((width // heads) ** -0.5) if scaled else 1.0


def weighted_values(logits: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(logits [B, H, C, N]) times value [B, N, d]: [B, C, d], zeros where N is 0.

    The product is in the dtype of `value`.
    """
    weights = torch.softmax(logits, dim=-1).to(value.dtype)
    return merge_heads(weights @ split_heads(value, heads))


def pointwise_values(
    logits: Tensor, value: Tensor, bias: Tensor, visible: Tensor, count: Tensor, heads: int
) -> Tensor:
    """silu(logits + bias) where visible, times value [B, N, d], over count: [B, C, d].

    logits [B, H, C, N]; bias and bool visible [B, C, N]; count [B, C]. The product is in the dtype
    of `value`, as is the result.
    """
    weights = F.silu(logits + widened(bias).unsqueeze(1))
    weights = torch.where(visible.unsqueeze(1), weights, 0.0).to(value.dtype)
    total = widened(merge_heads(weights @ split_heads(value, heads)))
    return (total / count.unsqueeze(-1)).to(value.dtype)


def select_largest(scores: Tensor, count: int) -> Tensor:
    """Which of scores [..., N] are among the `count` largest, as bool [..., N].

    All are where N <= count. A tie at the boundary goes to the lower positions: the k-th largest
    value is unique even if its position is not, so positions are counted, never sorted.
    """
    # One more score below all others: there is a boundary to read even where N is 0. And one more
    # row: older ONNX Runtimes (1.26 is one) end the process at a top-k of none.
    padded = F.pad(scores.flatten(0, -2), (0, 1, 0, 1), value=EXCLUDED)
    kept = torch.sym_min(count, scores.shape[-1] + 1)
    # Sorting the largest would take a sixth of the time that finding them does, for nothing.
    largest = padded.topk(kept, dim=-1, sorted=False).values[:-1]
    largest = largest.reshape(*scores.shape[:-1], kept)
    boundary = largest.amin(-1, keepdim=True)
    # Whatever is above the boundary is among the largest: it is counted there, not in all of N.
    places = kept - (largest > boundary).to(torch.int32).sum(-1, keepdim=True, dtype=torch.int32)
    tied = scores == boundary
    rank = tied.to(torch.int32).cumsum(-1, dtype=torch.int32)
    return (scores > boundary) | (tied & (rank <= places))


def excluded_logits(selected: Tensor) -> Tensor:
    """What to add to fp32 logits so that only bool `selected` [...] count: 0.0, or `EXCLUDED`."""
    # A product, because ONNX Runtime takes twice as long for a where.
    return (~selected).to(torch.float32) * EXCLUDED

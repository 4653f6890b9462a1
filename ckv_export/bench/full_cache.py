"""The rival: a decode graph that takes the uncompressed K and V of every cached event.

Same weights, same formulas, same appending; only what is cached differs: K and V [B, L, K, d] in
place of row numbers and user parts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ckv_export.bench.stored import full_cache_spec
from ckv_export.contract import GraphSpec, ModelSpec
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.model.base import CollectiveModel
from ckv_export.model.collective import CollectiveSide, assembled
from ckv_export.runtimes.base import Array, Arrays


class WholeSide(nn.Module):
    """A side of attention whose cache entry is the whole vector: to decode, one without a pool."""

    shared = False

    def __init__(self, side: CollectiveSide) -> None:
        super().__init__()
        self.side = side

    def encode(self, x: Tensor, rows: Tensor | None = None) -> tuple[None, Tensor]:
        """Events [B, N, d_e] -> their whole keys or values [B, N, d]; see `CollectiveSide`."""
        index, user = self.side.encode(x, rows)
        return None, assembled(
            self.side.pool if self.side.shared else None, index, user, user.dtype
        )


class FullDecodeGraph(DecodeGraph):
    """Decode with inputs ``cache_k_user``, ``cache_v_user`` [B, L, K, d] for its cache."""

    def __init__(self, model: CollectiveModel) -> None:
        # Weights are shared, all else is copied: modules keep their children in dictionaries.
        whole = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        for attention in whole.attentions:
            for side in ("k", "v"):
                setattr(attention, side, WholeSide(getattr(attention, side)))
        whole.cache = full_cache_spec(model.spec)
        super().__init__(whole)
        self.io = full_decode_io(self.io, model.spec)


def full_decode_io(io: GraphSpec, spec: ModelSpec) -> GraphSpec:
    """Inputs and outputs of decode with the uncompressed cache in place of the compact one."""
    cache = full_cache_spec(spec)
    axis = "K" if spec.window is not None else "S"
    rest = tuple(t for t in io.inputs if not t.name.startswith(("cache_", "pool_")))
    return GraphSpec(
        "decode_full",
        (*cache.named("cache", axis), *rest),
        (io.outputs[0], *cache.named("append", "T")),
    )


def whole_cache(model: CollectiveModel, cache: Mapping[str, Array]) -> Arrays:
    """The uncompressed cache of what prefill made: ``cache_k_user``, ``cache_v_user``."""
    tensors = {name: torch.from_numpy(array) for name, array in cache.items()}
    with torch.inference_mode():
        layers = model.cached(tensors, "cache")
        sides: Arrays = {}
        for place, side in enumerate(("k", "v")):
            vectors = [
                assembled(attention.pools[place], *entries.side(side), torch.float32)
                for attention, entries in zip(model.attentions, layers, strict=True)
            ]
            sides[f"cache_{side}_user"] = torch.stack(vectors, dim=1).numpy()
    return sides

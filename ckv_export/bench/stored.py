"""A user's cache as bytes: what a store hands over at the start of a request.

Arrays one after another, no header: row numbers uint16 where the pool has at most 65536 rows,
int32 otherwise; user parts or whole K and V as float32 or float16. As many bytes an event as
`cache.cache_sizes` counts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ckv_export.cache.rows import UINT16_ROWS
from ckv_export.contract import CacheSpec, ModelSpec
from ckv_export.runtimes.base import Array, Arrays

FLOATS = {"fp32": np.float32, "fp16": np.float16}


def full_cache_spec(spec: ModelSpec) -> CacheSpec:
    """The cache of the same model uncompressed: K and V of d numbers an event."""
    d = spec.attention.d
    return CacheSpec(spec.num_layers, (("k_user", "float32", d), ("v_user", "float32", d)))


class Layout:
    """How the entries of `cache` are stored, with floating-point parts as "fp32" or "fp16"."""

    def __init__(self, spec: ModelSpec, cache: CacheSpec, floats: str = "fp32") -> None:
        self.cache = cache
        self._kinds = {
            suffix: np.dtype(FLOATS[floats] if width is not None else _index(spec, suffix))
            for suffix, _, width in cache.tensors
        }

    @property
    def bytes_per_event(self) -> int:
        """Over all layers."""
        each = (
            self._kinds[suffix].itemsize * (1 if width is None else width)
            for suffix, _, width in self.cache.tensors
        )
        return self.cache.layers * sum(each)

    def pack(self, arrays: Mapping[str, Array], user: int) -> bytes:
        """One user of arrays ``cache_*`` [B, L, K, ...] as bytes."""
        parts = (
            np.ascontiguousarray(arrays[f"cache_{s}"][user], dtype=self._kinds[s]).tobytes()
            for s, _, _ in self.cache.tensors
        )
        return b"".join(parts)

    def unpack(self, blobs: Sequence[bytes], events: int) -> Arrays:
        """Users' bytes -> arrays ``cache_*`` [B, L, events, ...], right-aligned, zeros before."""
        shapes = {
            suffix: (self.cache.layers, events) + (() if width is None else (width,))
            for suffix, _, width in self.cache.tensors
        }
        arrays: Arrays = {
            f"cache_{suffix}": np.zeros((len(blobs), *shapes[suffix]), np.dtype(dtype))
            for suffix, dtype, _ in self.cache.tensors
        }
        for user, blob in enumerate(blobs):
            self._unpack_one(blob, {n: a[user] for n, a in arrays.items()}, events)
        return arrays

    def _unpack_one(self, blob: bytes, into: Mapping[str, Array], events: int) -> None:
        count, offset = len(blob) // max(self.bytes_per_event, 1), 0
        for suffix, _, width in self.cache.tensors:
            shape = (self.cache.layers, count) + (() if width is None else (width,))
            size = int(np.prod(shape))
            values = np.frombuffer(blob, self._kinds[suffix], size, offset).reshape(shape)
            into[f"cache_{suffix}"][:, events - count :] = values
            offset += values.nbytes


def _index(spec: ModelSpec, suffix: str) -> type:
    return np.uint16 if spec.attention.pool_rows(suffix[0]) <= UINT16_ROWS else np.int32


class Store:
    """Users' bytes in host memory, or in one file that is read anew at each request."""

    def __init__(self, blobs: Sequence[bytes], file: Path | None = None) -> None:
        self._blobs = list(blobs)
        self._places: list[tuple[int, int]] = []
        self._descriptor: int | None = None
        if file is not None:
            offset = 0
            for blob in blobs:
                self._places.append((offset, len(blob)))
                offset += len(blob)
            file.write_bytes(b"".join(blobs))
            self._descriptor = os.open(file, os.O_RDONLY)

    def fetch(self, users: Sequence[int]) -> list[bytes]:
        """The bytes of these users."""
        if self._descriptor is None:
            return [bytes(memoryview(self._blobs[u])) for u in users]
        places = (self._places[u] for u in users)
        return [os.pread(self._descriptor, size, offset) for offset, size in places]

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

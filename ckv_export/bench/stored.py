"""A user's cache as bytes: what a store hands over at the start of a request.

Arrays one after another, no header: row numbers uint16 where the pool has at most 65536 rows,
int32 otherwise; user parts or whole K and V as float32 or float16. As many bytes an event as
`cache.cache_sizes` counts.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np

from ckv_export.cache.rows import UINT16_ROWS
from ckv_export.contract import CacheSpec, ModelSpec
from ckv_export.runtimes.base import Array, Arrays

Blob = bytes | memoryview
Zeros = Callable[[tuple[int, ...], "np.dtype[np.generic]"], Array]

_JOINED = 1 << 16
"""Bytes of a user up to which users are unpacked together."""

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

    def unpack(self, blobs: Sequence[Blob], events: int, zeros: Zeros = np.zeros) -> Arrays:
        """Users' bytes -> arrays ``cache_*`` [B, L, events, ...], right-aligned, zeros before."""
        arrays = {
            f"cache_{suffix}": zeros(self.shape(suffix, len(blobs), events), np.dtype(dtype))
            for suffix, dtype, _ in self.cache.tensors
        }
        for users, block in _blocks(blobs):
            for suffix, values in self._stacked(block):
                arrays[f"cache_{suffix}"][users, :, events - values.shape[2] :] = values
        return arrays

    def shape(self, suffix: str, users: int, events: int) -> tuple[int, ...]:
        """Of ``cache_<suffix>``: [users, L, events, ...]."""
        widths = {name: width for name, _, width in self.cache.tensors}
        width = widths[suffix]
        return (users, self.cache.layers, events) + (() if width is None else (width,))

    def parts(self, blob: Blob) -> Iterator[tuple[str, Array]]:
        """Each tensor's suffix and its stored values [L, events, ...], which lie in `blob`."""
        for suffix, values in self._stacked(np.frombuffer(blob, np.uint8)[None]):
            yield suffix, values[0]

    def _stacked(self, block: Array) -> Iterator[tuple[str, Array]]:
        """Each tensor's suffix and its values [users, L, events, ...] in bytes [users, size]."""
        users, size = block.shape
        count, start = size // max(self.bytes_per_event, 1), 0
        for suffix, _, _ in self.cache.tensors:
            kind, shape = self._kinds[suffix], self.shape(suffix, users, count)
            end = start + kind.itemsize * math.prod(shape[1:])
            yield suffix, block[:, start:end].view(kind).reshape(shape)
            start = end


def _blocks(blobs: Sequence[Blob]) -> Iterator[tuple[slice, Array]]:
    """Users next to one another whose bytes are of one size, as [users, size].

    Each alone where they are large: there a copy of them costs more than a few calls of numpy.
    """
    start = 0
    for size, run in itertools.groupby(blobs, len):
        alike = list(run)
        step = len(alike) if size <= _JOINED else 1
        for first in range(0, len(alike), step):
            some = alike[first : first + step]
            joined = some[0] if step == 1 else b"".join(some)
            block = np.frombuffer(joined, np.uint8).reshape(len(some), size)
            yield slice(start, start + len(some)), block
            start += len(some)


def _index(spec: ModelSpec, suffix: str) -> type:
    return np.uint16 if spec.attention.pool_rows(suffix[0]) <= UINT16_ROWS else np.int32


class Store:
    """Users' bytes in host memory, copied out by each request."""

    lands = False
    """Whether a device can read what `fetch` returns by itself."""

    def __init__(self, blobs: Sequence[bytes]) -> None:
        self._blobs: list[Blob] = list(blobs)

    def fetch(self, users: Sequence[int]) -> list[Blob]:
        """The bytes of these users."""
        return [bytes(memoryview(self._blobs[u])) for u in users]

    def unpack(self, layout: Layout, users: Sequence[int], events: int) -> Arrays:
        """Fetch these users and make arrays of their bytes, see `Layout.unpack`."""
        return layout.unpack(self.fetch(users), events)


class FileStore(Store):
    """Users' bytes in a file that is read anew at each request, behind those of other stores."""

    def __init__(self, blobs: Sequence[bytes], file: BinaryIO) -> None:
        super().__init__([])
        ends = np.cumsum([file.seek(0, os.SEEK_END), *map(len, blobs)]).tolist()
        self._places = list(zip(ends, map(len, blobs), strict=False))
        file.write(b"".join(blobs))
        file.flush()
        self._file = file

    def fetch(self, users: Sequence[int]) -> list[Blob]:
        """The bytes of these users."""
        descriptor, places = self._file.fileno(), (self._places[u] for u in users)
        return [os.pread(descriptor, size, offset) for offset, size in places]

"""The CPU side of plugins/ as functions of numpy arrays: reference and emulated kernels."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DTYPES = {"fp32": 0, "fp16": 1, "bf16": 2}
TACTICS = {"auto": 0, "whole": 1, "split": 2, "cores whole": 3, "cores split": 4}

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


class Side(ctypes.Structure):
    _fields_ = (
        ("pool", ctypes.c_void_p),
        ("index", ctypes.c_void_p),
        ("user", ctypes.c_void_p),
        ("pool_rows", ctypes.c_int64),
        ("pool_width", ctypes.c_int32),
        ("user_width", ctypes.c_int32),
    )


class Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("batch", "queries", "events", "heads", "width")),
        ("scale", ctypes.c_double),
        ("query", ctypes.c_void_p),
        ("key", Side),
        ("value", Side),
        ("out", ctypes.c_void_p),
    )


class Options(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int32) for n in ("dtype", "tactic", "alignment", "padding", "capability")),
        ("seed", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class Part:
    """Keys or values: pool [M, d_g], index int32 [...], user [..., d_u]."""

    pool: Floats
    index: Ints
    user: Floats

    @property
    def width(self) -> int:
        return self.pool.shape[1] + self.user.shape[-1]

    def struct(self) -> Side:
        pointers = (a.ctypes.data for a in (self.pool, self.index, self.user))
        return Side(*pointers, *self.pool.shape, self.user.shape[-1])


@dataclass(frozen=True)
class Run:
    """How the emulator runs a kernel; `seed` orders its threads."""

    dtype: str = "fp32"
    tactic: str = "auto"
    alignment: int = 16
    padding: int = 0
    capability: int = 90
    seed: int = 1

    def struct(self) -> Options:
        return Options(
            DTYPES[self.dtype],
            TACTICS[self.tactic],
            self.alignment,
            self.padding,
            self.capability,
            self.seed,
        )


class Cpu:
    """The reference (`run` None) and the emulated kernels; each returns (output, bad rows)."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for op in ("pool_gather_concat", "pooled_attention", "pooled_pointwise_attention"):
            getattr(self._library, f"ckv_reference_{op}").restype = ctypes.c_int64

    def rounded(self, values: Floats, dtype: str) -> Floats:
        out = np.array(values, np.float32, order="C")
        self._library.ckv_round(DTYPES[dtype], _at(out), ctypes.c_int64(out.size))
        return out

    def pool_gather_concat(self, part: Part, run: Run | None = None) -> tuple[Floats, int]:
        out = np.full((*part.index.shape, part.width), np.nan, np.float32)
        side = part.struct()
        rows = ctypes.c_int64(part.index.size)
        arguments = (ctypes.byref(side), rows, _at(out))
        return out, self._call("pool_gather_concat", arguments, run)

    def attention(
        self, query: Floats, key: Part, value: Part, mask: Ints, heads: int, scale: float,
        run: Run | None = None,
    ) -> tuple[NDArray[np.float64], int]:  # fmt: skip
        struct, out = self._attention(query, key, value, heads, scale)
        return out, self._call("pooled_attention", (ctypes.byref(struct), _at(mask)), run)

    def pointwise(
        self, query: Floats, key: Part, value: Part, bias: Floats, visible: Ints, count: Floats,
        heads: int, scale: float, run: Run | None = None,
    ) -> tuple[NDArray[np.float64], int]:  # fmt: skip
        struct, out = self._attention(query, key, value, heads, scale)
        arguments = (ctypes.byref(struct), _at(bias), _at(visible), _at(count))
        return out, self._call("pooled_pointwise_attention", arguments, run)

    def _attention(
        self, query: Floats, key: Part, value: Part, heads: int, scale: float
    ) -> tuple[Attention, NDArray[np.float64]]:
        out = np.full(query.shape, np.nan)
        batch, queries, width = query.shape
        sizes = (batch, queries, key.index.shape[1], heads, width)
        return (
            Attention(*sizes, scale, _at(query), key.struct(), value.struct(), _at(out)),
            out,
        )

    def _call(self, op: str, arguments: tuple[object, ...], run: Run | None) -> int:
        if run is None:
            return int(getattr(self._library, f"ckv_reference_{op}")(*arguments))
        bad = ctypes.c_uint32()
        options = run.struct()
        emulated = getattr(self._library, f"ckv_emulated_{op}")
        status = emulated(ctypes.byref(options), *arguments, ctypes.byref(bad))
        assert status == 0, f"the launch of {op} returned CUDA error {status}"
        return bad.value


def _at(array: NDArray[np.generic]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)

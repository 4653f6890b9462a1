"""Launches of the entry kernels in plugins/aot: which kernel, which grid, which integers.

Sizes are symbolic (``ShapeExpr`` of ``tensorrt.plugin``): a grid follows the shapes of each call.
What must agree with the kernels' sources stands here once, and tests run the kernels with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckv_export.engine.aot_kernels import Kernel
from ckv_export.errors import EngineError

GATHER = "PoolGatherConcat"
SOFTMAX = "PooledAttention"
POINTWISE = "PooledPointwiseAttention"

_ROWS = ("pool_k", "index_k", "user_k", "pool_v", "index_v", "user_v")
INPUTS: Mapping[str, tuple[str, ...]] = {
    GATHER: ("pool", "index", "user"),
    SOFTMAX: ("query", *_ROWS, "mask"),
    POINTWISE: ("query", *_ROWS, "bias", "visible", "count"),
}
"""Inputs of each operator, in the order of its ONNX node and of its kernel's parameters."""

TILES = {1: 1, 2: 4}
"""Tactic of ordinary cores -> rows of a thread: the small tile wastes less on few candidates."""

TENSOR_CORES = 3
"""Tactic: tensor cores, of sm80 and later, for heads of up to 256 columns that are known."""

THREADS = 256
_SIDE = 16  # threads along a side of an attention block
_EVENTS = 32  # of a tile
_PITCH = 36  # floats of a row in shared memory
_LINKS = 3  # integers that are known of each event of this tile and of the next
_ITEMS = 4  # vectors that a thread of gather-concat writes
_NARROW, _WIDE = 32, 128  # value columns of a block
_HEADS = (32, 64, 128, 256)  # columns that heads are padded to for tensor cores
_UNASKED = 48 * 1024  # bytes of shared memory that any block may have

_ELEMENTS = {"FLOAT": ("float", 4), "HALF": ("__half", 2), "BF16": ("__nv_bfloat16", 2)}


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, its grid (symbolic or not), shared memory in bytes, its integers.

    `threads`: of a block.
    """

    kernel: Kernel
    grid: tuple[Any, Any, Any]
    shared_bytes: int
    numbers: tuple[Any, ...]
    threads: int = THREADS


@dataclass(frozen=True)
class Block:
    """A block that computes attention: how many queries, threads, bytes of shared memory it has.

    `macros` choose it when its kernel is compiled; `values`: value columns, None for all of a head.
    """

    queries: int
    threads: int
    shared_bytes: int
    macros: Mapping[str, int]
    values: int | None = None


def gather_launch(trtp: Any, inputs: Sequence[Any]) -> Launch:
    """Of ``PoolGatherConcat``: `inputs` are the tensor descriptors of `INPUTS`."""
    pool, index, user = inputs
    _, bytes_ = _element(pool)
    rows, pool_rows = index.shape_expr.numel(), pool.shape_expr[0]
    widths = pool.shape_expr[1], user.shape_expr[user.ndim - 1]
    width = widths[0] + widths[1]
    vector = _vector(width, bytes_)
    chunks = width * bytes_ // vector
    kernel = Kernel(
        "pool_gather_concat.cu", "ckv_pool_gather_concat", (("CKV_AOT_BYTES", str(bytes_)),)
    )
    blocks = trtp.max(trtp.cdiv(rows * chunks, THREADS * _ITEMS), 1)
    return Launch(kernel, (blocks, 1, 1), 0, (rows, pool_rows, *widths, vector))


def attention_launch(
    trtp: Any, operator: str, inputs: Sequence[Any], heads: int, scale: float, tactic: int
) -> Launch:
    """Of `SOFTMAX` or `POINTWISE`; `tactic`: one of `attention_tactics`, else the large tile."""
    named = dict(zip(INPUTS[operator], inputs, strict=True))
    query, index = named["query"].shape_expr, named["index_k"].shape_expr
    batch, queries, events = query[0], query[1], index[1]
    sides = [_side(named, side) for side in "kv"]
    width = sides[0][1] + sides[0][2]
    known = width.constant_value() // heads if width.is_constant else None
    block = _block(tactic, known, _element(named["query"])[1])
    tiles = trtp.cdiv(queries, block.queries)
    chunks = 1 if block.values is None else trtp.max(trtp.cdiv(width // heads, block.values), 1)
    return Launch(
        _attention_kernel(operator, named, scale, block),
        (trtp.max(batch * tiles * heads, 1), 1, chunks),
        block.shared_bytes,
        (batch, queries, events, heads, width, *sides[0], *sides[1]),
        block.threads,
    )


def attention_tactics(query: Any, heads: int, generation: int) -> list[int]:
    """Numbers of the tactics there are for a query's descriptor, its shape among the numbers.

    `generation`: 90 for sm90.
    """
    width = query.shape[2]
    known = generation >= 80 and width > 0
    block = tensor_core_block(width // heads, _element(query)[1]) if known else None
    return [*TILES, *([] if block is None else [TENSOR_CORES])]


def _block(tactic: int, head_width: int | None, element_bytes: int) -> Block:
    if tactic == TENSOR_CORES and head_width is not None:
        block = tensor_core_block(head_width, element_bytes)
        if block is not None:
            return block
    return core_block(TILES.get(tactic, 4), head_width)


def core_block(tile: int, head_width: int | None) -> Block:
    """Of ordinary cores: `tile` rows a thread, columns for heads of that width (None: any)."""
    values = _NARROW if head_width is not None and head_width <= _NARROW else _WIDE
    rows = _SIDE * tile
    # ckv::cores::Shared<tile, values>.
    floats = 2 * rows * _PITCH + _EVENTS * _PITCH + _EVENTS * values
    shared_bytes = 4 * (floats + 2 * _LINKS * _EVENTS + 2)
    macros = {"CKV_AOT_TILE": tile, "CKV_AOT_VALUES": values}
    return Block(rows, THREADS, shared_bytes, macros, values)


def tensor_core_block(head_width: int, element_bytes: int) -> Block | None:
    """Of tensor cores, as many warps as have room; None where there is none for such a head."""
    head = next((columns for columns in _HEADS if head_width <= columns), None)
    if head is None:
        return None
    for warps in (8, 4, 2, 1)[head > 64 :]:
        shared_bytes = _tensor_core_bytes(head, warps, element_bytes)
        if shared_bytes <= _UNASKED:
            macros = {"CKV_AOT_HEAD": head, "CKV_AOT_WARPS": warps}
            return Block(16 * warps, 32 * warps, shared_bytes, macros)
    return None


def _tensor_core_bytes(head: int, warps: int, element_bytes: int) -> int:
    """Bytes of ``ckv::mma::Shared<T, head, warps>``."""
    events = min(64, 8192 // (head * element_bytes))
    rows = 16 * warps + 2 * 2 * events  # queries, then two stages of keys and of values
    links = 3 * 3 * events + 2
    size = rows * (head * element_bytes + 16) + 4 * links
    return -(-size // 16) * 16


def _attention_kernel(
    operator: str, named: Mapping[str, Any], scale: float, block: Block
) -> Kernel:
    element, _ = _element(named["query"])
    macros = {
        "CKV_AOT_T": element,
        **{name: str(value) for name, value in block.macros.items()},
        # Hexadecimal: the very number, in C++17 as in Python.
        "CKV_AOT_SCALE": f"static_cast<float>({float(scale).hex()})",
    }
    if operator == SOFTMAX:
        return Kernel("pooled_attention.cu", "ckv_pooled_attention", tuple(macros.items()))
    macros["CKV_AOT_FLOAT_COUNT"] = str(_element(named["count"])[0] == "float").lower()
    symbol = "ckv_pooled_pointwise_attention"
    return Kernel("pooled_pointwise_attention.cu", symbol, tuple(macros.items()))


def _side(named: Mapping[str, Any], side: str) -> tuple[Any, Any, Any]:
    """Pool rows, pool width and user width of keys or values."""
    pool, user = named[f"pool_{side}"].shape_expr, named[f"user_{side}"].shape_expr
    return pool[0], pool[1], user[2]


def _vector(width: Any, element_bytes: int) -> int:
    """Bytes of the widest store that all rows are aligned for; buffers begin aligned to 256."""
    if not width.is_constant:
        return element_bytes
    row = width.constant_value() * element_bytes
    return next(n for n in (16, 8, 4, 2) if row % n == 0)


def _element(desc: Any) -> tuple[str, int]:
    """C++ type and bytes of a tensor's elements."""
    name = desc.dtype.name
    if name not in _ELEMENTS:
        raise EngineError(f"kernels for an engine take {', '.join(_ELEMENTS)} elements, got {name}")
    return _ELEMENTS[name]

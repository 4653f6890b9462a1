"""Kernels inside the engine, up to the launch: NVIDIA's ``tensorrt.plugin`` over our glue, then the
entry kernels in the emulator with the very grid and integers that came out, against the reference.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
from collections.abc import Iterator, Mapping
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from ckv_native import Cpu, Part, Run
from ckv_testing import fake_tensorrt
from ckv_testing.fake_tensorrt import Built, DataType, Node
from hypothesis import given
from hypothesis import strategies as st
from test_reference import TOLERANCES, Case, cases, close, many, rounded, runs

from ckv_export.engine import aot_plugin
from ckv_export.engine.aot_kernels import Kernel
from ckv_export.engine.aot_launch import (
    INPUTS,
    TENSOR_CORES,
    TILES,
    attention_tactics,
    core_block,
    tensor_core_block,
)
from ckv_export.engine.backends import Backend
from ckv_export.errors import EngineError

TYPES = {"fp32": DataType.FLOAT, "fp16": DataType.HALF, "bf16": DataType.BF16}
WHOLE = ("index", "index_k", "index_v", "mask", "visible")


class Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_int32 * 3),
        *((n, ctypes.c_int32) for n in ("threads", "shared")),
        *((n, ctypes.c_int32) for n in ("tile", "values", "head", "warps", "float_count")),
        ("numbers", ctypes.POINTER(ctypes.c_int32)),
    )


class Named:
    """A compiler whose PTX is the kernel's macros, in the place of text that no test here reads."""

    target = "sm80"
    find = staticmethod(lambda target: Named())

    def ptx(self, kernel: Kernel) -> str:
        return json.dumps(dict(kernel.macros))


@pytest.fixture(scope="module")
def trt() -> Iterator[ModuleType]:
    """A module tensorrt in which our plugins are registered."""
    with pytest.MonkeyPatch.context() as patch:
        module = fake_tensorrt.installed(patch)
        patch.setattr(aot_plugin, "_state", {})
        patch.setattr(aot_plugin, "_failures", [])
        patch.setattr(aot_plugin, "Compiler", Named)
        aot_plugin.register(Backend("tensorrt", module, "11.4.0"), "sm80")
        yield module
        fake_tensorrt.forget()


Axes = tuple[int | str, ...]


def shapes(operator: str, static: bool, sizes: Mapping[str, int]) -> list[Axes]:
    """Axes of every input; `static`: numbers where an exported graph has them, else all names."""

    def side(name: str) -> list[Axes]:
        return [(f"M{name}", f"G{name}"), ("B", "N"), ("B", "N", f"U{name}")]

    if operator == "PoolGatherConcat":
        named = side("k")
    else:
        links: list[Axes] = [("B", "C", "N"), ("B", "C", "N"), ("B", "C")]
        own = [("B", "N")] if operator == "PooledAttention" else links
        named = [("B", "C", "D"), *side("k"), *side("v"), *own]
    if not static:
        return named
    return [tuple(a if a in "BCN" else sizes[a] for a in axes) for axes in named]


def sizes_of(case: Case) -> dict[str, int]:
    batch, queries, width = case.query.shape
    sizes = {"B": batch, "C": queries, "D": width, "N": case.key.index.shape[1]}
    for name, part in (("k", case.key), ("v", case.value)):
        rows, pool = part.pool.shape
        sizes |= {f"M{name}": rows, f"G{name}": pool, f"U{name}": part.user.shape[-1]}
    return sizes


def built(
    trt: ModuleType,
    operator: str,
    case: Case,
    dtype: str,
    float_count: bool = True,
    static: bool = True,
) -> Iterator[tuple[int, Built, Mapping[str, int]]]:
    """Every tactic of a node of `case`, with the sizes of the call."""
    kinds = {name: DataType.INT32 if name in WHOLE else TYPES[dtype] for name in INPUTS[operator]}
    if float_count and "count" in kinds:
        kinds["count"] = DataType.FLOAT
    attributes = {"num_heads": case.heads, "scale": float(np.float32(case.scale))}
    sizes = sizes_of(case)
    node = Node(operator, attributes, shapes(operator, static, sizes), list(kinds.values()))
    for tactic, answer in fake_tensorrt.build(trt, node, sizes):
        yield tactic, answer, sizes


def launch_of(answer: Built, sizes: Mapping[str, int], float_count: bool = True) -> Launch:
    numbers = answer.integers(sizes)
    macros = json.loads(answer.ptx)
    kept = (ctypes.c_int32 * len(numbers))(*numbers)
    return Launch(
        (ctypes.c_int32 * 3)(*answer.grid(sizes)),
        answer.threads(sizes),
        answer.shared(sizes),
        *(int(macros.get(f"CKV_AOT_{name}", 0)) for name in ("TILE", "VALUES", "HEAD", "WARPS")),
        float_count,
        ctypes.cast(kept, ctypes.POINTER(ctypes.c_int32)),
    )


class Emulated:
    """The entry kernels in the emulator."""

    def __init__(self, cpu: Cpu) -> None:
        self.cpu, self.library = cpu, cpu._library
        self.library.ckv_aot_shared_bytes.restype = ctypes.c_int64

    def gather(self, case: Case, run: Run, launch: Launch) -> np.ndarray:
        part = case.key
        out = np.full((*part.index.shape, part.width), np.nan, np.float32)
        side, rows = part.struct(), ctypes.c_int64(part.index.size)
        at = ctypes.c_void_p(out.ctypes.data)
        self._call("pool_gather_concat", run, launch, ctypes.byref(side), rows, at)
        return out

    def softmax(self, case: Case, run: Run, launch: Launch) -> np.ndarray:
        struct, out = self.cpu._attention(*case.softmax[:3], case.heads, case.scale)
        mask = ctypes.c_void_p(case.mask.ctypes.data)
        self._call("pooled_attention", run, launch, ctypes.byref(struct), mask)
        return out

    def pointwise(self, case: Case, run: Run, launch: Launch) -> np.ndarray:
        struct, out = self.cpu._attention(*case.pointwise[:3], case.heads, case.scale)
        links = (case.bias, case.visible, case.count)
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in links)
        self._call("pooled_pointwise_attention", run, launch, ctypes.byref(struct), *pointers)
        return out

    def _call(self, operator: str, run: Run, launch: Launch, *arguments: object) -> None:
        # TensorRT's buffers are aligned and dense, and its GPU is the one that was built for.
        options = dataclasses.replace(run, alignment=16, padding=0, capability=90).struct()
        function = getattr(self.library, f"ckv_emulated_aot_{operator}")
        status = function(ctypes.byref(options), ctypes.byref(launch), *arguments)
        assert status == 0, f"the launch of {operator} returned CUDA error {status}"


@pytest.fixture(scope="module")
def emulated(cpu: Cpu) -> Emulated:
    return Emulated(cpu)


def tactics_of(case: Case, dtype: str, static: bool = True) -> list[int]:
    """Tensor cores take every head of these cases but, for want of room, the widest of fp32."""
    widest = 128 if dtype == "fp32" else 256
    fits = static and case.query.shape[2] // case.heads <= widest
    return [*TILES, TENSOR_CORES] if fits else [*TILES]


@given(case=cases(), run=runs(), static=st.booleans())
@many
def test_gather_concat_moves_bits(
    trt: ModuleType, emulated: Emulated, case: Case, run: Run, static: bool
):
    case = rounded(emulated.cpu, case, run.dtype)
    want, _ = emulated.cpu.pool_gather_concat(case.key)
    for _, answer, sizes in built(trt, "PoolGatherConcat", case, run.dtype, static=static):
        got = emulated.gather(case, run, launch_of(answer, sizes))
        np.testing.assert_array_equal(got, want)


@given(case=cases(most_events=120), run=runs(), static=st.booleans())
@many
def test_softmax_attention(trt: ModuleType, emulated: Emulated, case: Case, run: Run, static: bool):
    case = rounded(emulated.cpu, case, run.dtype)
    want, _ = emulated.cpu.attention(*case.softmax)
    tactics = []
    for tactic, answer, sizes in built(trt, "PooledAttention", case, run.dtype, static=static):
        close(emulated.softmax(case, run, launch_of(answer, sizes)), want, TOLERANCES[run.dtype])
        tactics.append(tactic)
    assert sorted(tactics) == tactics_of(case, run.dtype, static)


@given(case=cases(most_events=120), run=runs(), float_count=st.booleans())
@many
def test_pointwise_attention(
    trt: ModuleType, emulated: Emulated, case: Case, run: Run, float_count: bool
):
    case = rounded(emulated.cpu, case, run.dtype)
    want, _ = emulated.cpu.pointwise(*case.pointwise)
    operator = "PooledPointwiseAttention"
    for _, answer, sizes in built(trt, operator, case, run.dtype, float_count):
        count = "true" if float_count or run.dtype == "fp32" else "false"
        assert json.loads(answer.ptx)["CKV_AOT_FLOAT_COUNT"] == count
        launch = launch_of(answer, sizes, float_count)
        close(emulated.pointwise(case, run, launch), want, TOLERANCES[run.dtype])


@pytest.mark.parametrize("tile", TILES.values())
@pytest.mark.parametrize(("head", "values"), [(1, 32), (32, 32), (33, 128), (None, 128)])
def test_shared_memory_is_what_the_kernel_lays_out(
    emulated: Emulated, tile: int, head: int | None, values: int
):
    block = core_block(tile, head)
    assert block.macros["CKV_AOT_VALUES"] == block.values == values
    assert block.shared_bytes == emulated.library.ckv_aot_shared_bytes(tile, values) <= 48 * 1024


@pytest.mark.parametrize("bytes_", [2, 4])
@pytest.mark.parametrize(("head", "padded"), [(1, 32), (32, 32), (33, 64), (128, 128), (129, 256)])
def test_tensor_cores_have_as_many_warps_as_there_is_room_for(
    emulated: Emulated, bytes_: int, head: int, padded: int
):
    warps = ctypes.c_int32()
    shared = emulated.library.ckv_aot_tensor_core_block(bytes_, padded, ctypes.byref(warps))
    block = tensor_core_block(head, bytes_)
    if warps.value == 0:
        assert (bytes_, padded, block) == (4, 256, None)
        return
    assert block is not None
    assert block.macros == {"CKV_AOT_HEAD": padded, "CKV_AOT_WARPS": warps.value}
    assert (block.queries, block.threads) == (16 * warps.value, 32 * warps.value)
    assert block.shared_bytes == shared <= 48 * 1024


def test_tensor_cores_take_no_wider_head_and_no_older_gpu():
    assert tensor_core_block(257, 2) is None

    def tactics(width: int, generation: int) -> list[int]:
        query = SimpleNamespace(dtype=DataType.HALF, shape=(-1, -1, width))
        return attention_tactics(query, 2, generation)

    assert tactics(512, 80) == [*TILES, TENSOR_CORES]
    assert tactics(514, 80) == tactics(512, 75) == tactics(-1, 120) == [*TILES]


def test_as_many_blocks_as_there_is_work_for_and_always_one(trt: ModuleType):
    """CUDA refuses to launch none."""
    side: list[Axes] = [(9, 70), ("B", "N"), ("B", "N", 10)]
    kinds = [DataType.HALF, DataType.INT32, DataType.HALF]
    sizes = {"B": 2, "C": 70, "N": 500}
    gather = Node("PoolGatherConcat", {}, side, kinds)
    for _, answer in fake_tensorrt.build(trt, gather, sizes):
        # 1000 rows of 160 bytes in vectors of 16, 4 for each of 256 threads.
        assert answer.grid(sizes) == (10, 1, 1)
        assert answer.grid(sizes | {"N": 0}) == (1, 1, 1)
        assert json.loads(answer.ptx) == {"CKV_AOT_BYTES": "2"}
    attention = Node(
        "PooledAttention",
        {"num_heads": 4, "scale": 1.0},
        [("B", "C", 80), *side, *side, ("B", "N")],
        [DataType.HALF, *kinds, *kinds, DataType.INT32],
    )
    # 8 rows of blocks for users and heads; 70 candidates by 16, 64 or 128.
    blocks = {1: 8 * 5, 2: 8 * 2, TENSOR_CORES: 8}
    for tactic, answer in fake_tensorrt.build(trt, attention, sizes):
        assert answer.grid(sizes) == (blocks[tactic], 1, 1)
        assert "32" in (json.loads(answer.ptx).get(f"CKV_AOT_{n}") for n in ("VALUES", "HEAD"))
        for empty in ({"B": 0}, {"C": 0}):
            assert answer.grid(sizes | empty) == (1, 1, 1)


def test_a_later_build_of_a_process_compiles_for_its_own_target(
    trt: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(aot_plugin, "_state", dict(aot_plugin._state))
    node = Node(
        "PoolGatherConcat",
        {},
        [(9, 62), ("B", "N"), ("B", "N", 2)],
        [DataType.HALF, DataType.INT32, DataType.HALF],
    )
    for target in ("sm90", "sm80"):
        compiler = SimpleNamespace(ptx=lambda kernel, target=target: target)
        monkeypatch.setattr(Named, "find", lambda target, compiler=compiler: compiler)
        aot_plugin.register(Backend("tensorrt", trt, "11.4.0"), target)
        ((_, answer),) = fake_tensorrt.build(trt, node, {"B": 1, "N": 1})
        assert answer.ptx == target.encode()


def test_output_follows_the_inputs(trt: ModuleType):
    float_, int_ = DataType.HALF, DataType.INT32
    gather = Node(
        "PoolGatherConcat", {}, [(9, 62), ("B", "N"), ("B", "N", 2)], [float_, int_, float_]
    )
    sizes = {"B": 3, "N": 5}
    assert fake_tensorrt.output_shape(trt, gather, sizes) == ((3, 5, 64), float_)


def test_the_scale_is_compiled_in_exactly(trt: ModuleType, rng: np.random.Generator):
    scale = float(np.float32(rng.uniform(0.01, 2)))
    case = Case(
        np.zeros((1, 2, 8), np.float32), *[part(rng) for _ in range(2)],
        np.ones((1, 3), np.int32), *[None] * 3, heads=2, scale=scale,
    )  # fmt: skip
    for tactic, answer, _ in built(trt, "PooledAttention", case, "bf16"):
        macros = json.loads(answer.ptx)
        text = macros["CKV_AOT_SCALE"].removeprefix("static_cast<float>(").removesuffix(")")
        assert float.fromhex(text) == scale
        assert macros["CKV_AOT_T"] == "__nv_bfloat16"
        assert macros.get("CKV_AOT_TILE") == (str(TILES[tactic]) if tactic in TILES else None)


def part(rng: np.random.Generator) -> Part:
    return Part(
        rng.standard_normal((4, 6), np.float32),
        np.zeros((1, 3), np.int32),
        np.zeros((1, 3, 2), np.float32),
    )


def test_other_element_types_are_refused_and_remembered(trt: ModuleType):
    types = [DataType.INT8, DataType.INT32, DataType.INT8]
    node = Node("PoolGatherConcat", {}, [(9, 62), ("B", "N"), ("B", "N", 2)], types)
    with pytest.raises(EngineError, match="take FLOAT, HALF, BF16 elements, got INT8"):
        list(fake_tensorrt.build(trt, node, {"B": 1, "N": 1}))
    assert "got INT8" in str(aot_plugin.failure())
    aot_plugin._failures.clear()


def test_a_cache_that_cannot_be_written_is_remembered(
    trt: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    def refuse(self: Named, kernel: Kernel) -> str:
        raise OSError(28, "No space left on device", "/kept")

    monkeypatch.setattr(Named, "ptx", refuse)
    types = [DataType.HALF, DataType.INT32, DataType.HALF]
    node = Node("PoolGatherConcat", {}, [(9, 62), ("B", "N"), ("B", "N", 2)], types)
    with pytest.raises(OSError, match="No space left"):
        list(fake_tensorrt.build(trt, node, {"B": 1, "N": 1}))
    told = "can't make the kernel of PoolGatherConcat: No space left on device /kept"
    assert str(aot_plugin.failure()) == told
    aot_plugin._failures.clear()

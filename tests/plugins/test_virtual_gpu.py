"""What nvcc makes of the kernels, run on the CPU by plugins/tests/ptx: PTX, optimised as shipped.

Its GPU ends a test at an access outside an allocation or misaligned, at bytes read before they were
written or waited for, and at races.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from ckv_native import Cpu, Part
from ckv_testing import fake_tensorrt
from ckv_testing.fake_tensorrt import Built
from ckv_virtual_gpu import VirtualGpu
from test_aot import built
from test_reference import TOLERANCES, Case, close, rounded

from ckv_export.engine import aot_plugin
from ckv_export.engine.aot_launch import TENSOR_CORES, TILES
from ckv_export.engine.backends import Backend

TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_virtual_gpu_finds_every_planted_fault(ptx_build: Path) -> None:
    assert run(ptx_build / "tests" / "ptx" / "test_ptx").endswith(" passed, 0 failed\n")


def test_the_harness_passes(ptx_build: Path, seed: int) -> None:
    """The program for a real GPU: every kernel and tactic, beside the C++ reference."""
    out = run(ptx_build / "tests" / "ptx" / "ckv_harness_ptx", "quick", str(seed))
    assert "PTX on the CPU" in out
    assert out.endswith(" passed, 0 failed\n")


# The last byte of what comes back from the GPU: of results, or of counters alone.
WRONG_COPIES = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
int cudaMemcpy(void *to, void const *from, size_t bytes, int kind) {
    int (*copy)(void *, void const *, size_t, int) = dlsym(RTLD_NEXT, "cudaMemcpy");
    int const status = copy(to, from, bytes, kind);
    if (kind == 2 && (bytes == 4) == COUNTERS) {
        ((unsigned char *)to)[bytes - 1] ^= 0x40;
    }
    return status;
}
"""


@pytest.mark.parametrize("counters", [0, 1])
def test_the_harness_tells_every_wrong_result(
    ptx_build: Path, tmp_path: Path, counters: int
) -> None:
    library = tmp_path / "wrong.so"
    compiler = ("cc", "-shared", "-fPIC", "-x", "c", "-", f"-DCOUNTERS={counters}", "-ldl")
    subprocess.run([*compiler, "-o", library], input=WRONG_COPIES, text=True, check=True)
    program = ptx_build / "tests" / "ptx" / "ckv_harness_ptx"
    done = subprocess.run(
        [program, "random", "6", "1"],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    *failures, total = done.stdout.splitlines()[1:]
    assert total == f"0 passed, {len(failures)} failed"
    assert all(failure.startswith("FAILED ") for failure in failures)


def test_plugins_enqueue_what_the_reference_computes(ptx_build: Path, seed: int) -> None:
    """All of them, with every tactic, shapes that change within a profile, and CUDA graphs."""
    program = ptx_build / "tests" / "ptx" / "test_enqueue_ptx"
    if not program.exists():
        pytest.skip("TensorRT's headers are not here: set TensorRT_ROOT")
    assert run(program, str(seed)).endswith(" passed, 0 failed\n")


@pytest.fixture(scope="module")
def gpu(ptx_build: Path) -> VirtualGpu:
    return VirtualGpu(ptx_build / "tests" / "ptx" / "libckv_ptx.so")


@pytest.fixture(scope="module")
def trt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A module tensorrt in which our plugins are registered, kernels compiled by nvcc."""
    with pytest.MonkeyPatch.context() as patch:
        module = fake_tensorrt.installed(patch)
        patch.setenv("CKV_EXPORT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(aot_plugin, "_state", {})
        patch.setattr(aot_plugin, "_failures", [])
        aot_plugin.register(Backend("tensorrt", module, "11.4.0"), "sm90")
        yield module
        fake_tensorrt.forget()


def random_case(rng: np.random.Generator, batch: int, queries: int, events: int) -> Case:
    """Heads of 33 columns, the pool's border inside the second; some rows outside the pool."""

    def part(user: int) -> Part:
        return Part(
            rng.standard_normal((9, 66 - user), np.float32),
            rng.integers(-1, 9, (batch, events), np.int32, endpoint=True),
            rng.standard_normal((batch, events, user), np.float32),
        )

    links = (batch, queries, events)
    return Case(
        query=rng.standard_normal((batch, queries, 66), np.float32),
        key=part(3),
        value=part(2),
        mask=rng.integers(0, 2, (batch, events), np.int32),
        bias=rng.standard_normal(links, np.float32),
        visible=rng.integers(0, 2, links, np.int32),
        count=rng.integers(1, 9, (batch, queries)).astype(np.float32),
        heads=2,
        scale=0.25,
    )


SIZES = [(1, 1, 0), (1, 1, 1), (2, 19, 33), (3, 65, 70)]


def launched(
    gpu: VirtualGpu,
    answer: Built,
    sizes: dict[str, int],
    inputs: list[torch.Tensor],
    out: torch.Tensor,
) -> np.ndarray:
    """The output of an entry kernel, launched as TensorRT is told to."""
    result = gpu.upload(torch.full_like(out, torch.nan))
    arguments = [
        *map(gpu.upload, inputs),
        *map(ctypes.c_int32, answer.integers(sizes)),
        result,
    ]
    function = gpu.function(answer.ptx, answer.symbol)
    gpu.launch(function, answer.grid(sizes), answer.threads(sizes), answer.shared(sizes), arguments)
    return gpu.download(result, out).float().numpy()


def rows(part: Part, dtype: str) -> list[torch.Tensor]:
    return [
        torch.from_numpy(part.pool).to(TORCH[dtype]),
        torch.from_numpy(part.index),
        torch.from_numpy(part.user).to(TORCH[dtype]),
    ]


def test_embedded_gather_concat(
    gpu: VirtualGpu, trt: ModuleType, cpu: Cpu, rng: np.random.Generator
) -> None:
    for batch, queries, events in SIZES:
        case = rounded(cpu, random_case(rng, batch, queries, events), "bf16")
        want, _ = cpu.pool_gather_concat(case.key)
        out = torch.empty(want.shape, dtype=torch.bfloat16)
        for _, answer, sizes in built(trt, "PoolGatherConcat", case, "bf16"):
            got = launched(gpu, answer, dict(sizes), rows(case.key, "bf16"), out)
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("operator", "dtype"), [("PooledAttention", "fp16"), ("PooledPointwiseAttention", "fp32")]
)
def test_embedded_attention(
    gpu: VirtualGpu, trt: ModuleType, cpu: Cpu, rng: np.random.Generator, operator: str, dtype: str
) -> None:
    for shape in SIZES:
        case = rounded(cpu, random_case(rng, *shape), dtype)
        inputs = [torch.from_numpy(case.query).to(TORCH[dtype])]
        inputs += rows(case.key, dtype) + rows(case.value, dtype)
        if operator == "PooledAttention":
            want, _ = cpu.attention(*case.softmax)
            inputs.append(torch.from_numpy(case.mask))
        else:
            want, _ = cpu.pointwise(*case.pointwise)
            inputs += map(torch.from_numpy, (case.bias, case.visible, case.count))
        tactics = []
        for tactic, answer, sizes in built(trt, operator, case, dtype):
            got = launched(gpu, answer, dict(sizes), inputs, inputs[0])
            close(got, want, TOLERANCES[dtype])
            tactics.append(tactic)
        assert sorted(tactics) == [*TILES, TENSOR_CORES]

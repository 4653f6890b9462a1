"""The GPU of plugins/tests/ptx, which runs PTX on the CPU, through CUDA's own C interfaces."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch

TO_GPU, TO_HOST = 1, 2  # cudaMemcpyKind


class VirtualGpu:
    """Memory, modules and launches; whatever a GPU would not promise fails the test."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.ckv_ptx_fault.restype = ctypes.c_char_p

    def upload(self, values: torch.Tensor) -> ctypes.c_void_p:
        """A copy of `values`, in an allocation that ends where they do."""
        host = values.contiguous()
        pointer, size = ctypes.c_void_p(), ctypes.c_size_t(host.numel() * host.element_size())
        self._call("cudaMalloc", ctypes.byref(pointer), size)
        self._call("cudaMemcpy", pointer, ctypes.c_void_p(host.data_ptr()), size, TO_GPU)
        return pointer

    def download(self, pointer: ctypes.c_void_p, like: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(like)
        size = ctypes.c_size_t(out.numel() * out.element_size())
        self._call("cudaMemcpy", ctypes.c_void_p(out.data_ptr()), pointer, size, TO_HOST)
        return out

    def function(self, ptx: bytes, symbol: str) -> ctypes.c_void_p:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(ptx))
        self._call("cuModuleGetFunction", ctypes.byref(function), module, symbol.encode())
        return function

    def launch(
        self,
        function: ctypes.c_void_p,
        grid: Sequence[int],
        threads: int,
        shared_bytes: int,
        arguments: Sequence[ctypes._SimpleCData],  # type: ignore[type-arg]
    ) -> None:
        values = [ctypes.cast(ctypes.pointer(a), ctypes.c_void_p) for a in arguments]
        pointers = (ctypes.c_void_p * len(values))(*values)
        self._call(
            "cuLaunchKernel", function, *grid, threads, 1, 1, shared_bytes, None, pointers, None
        )

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        assert status == 0, f"{name} returned {status}: {self._library.ckv_ptx_fault().decode()}"

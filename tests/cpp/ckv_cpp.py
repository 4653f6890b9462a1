"""The C++ library through engines/cpp/tests/c_api.cpp and session_api.cpp."""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckv_export.cache.record import Field, RecordLayout
from ckv_export.manifest import Manifest

Arrays = Mapping[str, NDArray[Any]]
TYPES = {"float32": 0, "float16": 1, "int8": 2}
_ROOM = 1 << 20


def run(*command: object, cwd: Path | None = None, quiet: bool = False) -> str:
    """Output of a command, which must succeed; `quiet`: and complain of nothing."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (quiet and done.stderr), done.stderr
    return done.stdout


class CppError(Exception):
    """An error of the C++ library; `code` is the position in its ErrorCode."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Library:
    """libckv_c.so."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        for name in (
            *("encode", "append", "decode", "batch", "batch_events"),
            *("user_events", "pad_to", "tensor_file"),
        ):
            getattr(self.c, f"ckv_{name}").restype = ctypes.c_int64
        for name in ("error", "describe"):
            getattr(self.c, f"ckv_{name}").restype = ctypes.c_char_p
        self.c.ckv_layout.restype = ctypes.c_void_p
        self.c.ckv_crc32.restype = ctypes.c_uint32

    def check(self, outcome: int) -> int:
        if outcome < 0:
            raise CppError(-1 - outcome, self.c.ckv_error().decode())
        return outcome

    def tensor_file(
        self, bundle: Path, name: str = "", out: NDArray[Any] | None = None, pools: bool = False
    ) -> int:
        """Rows of a bundle's item table, 0 for its pools; `out` gets the tensor `name`."""
        address = None if out is None else _address(out)
        given = str(bundle).encode(), int(pools), name.encode(), address
        return self.check(self.c.ckv_tensor_file(*given))

    def layout(
        self, bundle: Path, user_dtype: str, graph: str = "", verify: bool = False
    ) -> CppLayout:
        handle = self.c.ckv_layout(
            str(bundle).encode(), TYPES[user_dtype], graph.encode(), int(verify)
        )
        if handle is None:
            raise CppError(-1, self.c.ckv_error().decode())
        return CppLayout(self, ctypes.c_void_p(handle))


class CppLayout:
    """A RecordLayout of the library."""

    def __init__(self, library: Library, handle: ctypes.c_void_p) -> None:
        self.library, self.handle = library, handle

    def __del__(self) -> None:
        self.library.c.ckv_layout_free(self.handle)

    def describe(self) -> str:
        text: str = self.library.c.ckv_describe(self.handle).decode()
        return text

    def pad_to(self) -> int | None:
        number = self.library.c.ckv_pad_to(self.handle)
        return None if number < 0 else number

    def encode(self, layout: RecordLayout, arrays: Arrays) -> bytes:
        out = np.zeros(_ROOM, np.uint8)
        given = _user_tensors(layout, arrays)
        size = self.library.check(
            self.library.c.ckv_encode(self.handle, *given.arguments, _address(out))
        )
        return out[:size].tobytes()

    def append(
        self, layout: RecordLayout, data: bytes, arrays: Arrays, max_events: int | None = None
    ) -> bytes:
        buffer = np.zeros(_ROOM, np.uint8)
        buffer[: len(data)] = np.frombuffer(data, np.uint8)
        given = _user_tensors(layout, arrays)
        most = ctypes.c_int64(-1 if max_events is None else max_events)
        size = self.library.check(
            self.library.c.ckv_append(
                self.handle, _address(buffer), ctypes.c_int64(_ROOM), *given.arguments, most
            )
        )
        return buffer[:size].tobytes()

    def decode(self, layout: RecordLayout, data: bytes) -> dict[str, NDArray[Any]]:
        raw = np.frombuffer(data, np.uint8)
        out = np.zeros(_ROOM, np.uint8)
        events = self.library.check(
            self.library.c.ckv_decode(
                self.handle, _address(raw), ctypes.c_int64(len(data)), _address(out)
            )
        )
        arrays, at = {}, 0
        for field in layout.fields:
            shape = field.tensor_shape(_kept(layout, field, events))
            size = 4 * int(np.prod(shape))
            arrays[field.name] = out[at : at + size].view(field.dtype).reshape(shape)
            at += size
        return arrays

    def batch(
        self, layout: RecordLayout, records: Sequence[bytes], events: int | None, out: Arrays
    ) -> int:
        """Fill `out`, arrays of the right shapes; returns S."""
        given, named = _Records(records), _Named(out)
        length = ctypes.c_int64(-1 if events is None else events)
        return self.library.check(
            self.library.c.ckv_batch(self.handle, *given.arguments, length, *named.arguments)
        )

    def batch_events(self, records: Sequence[bytes], appended: int) -> int:
        """S of a call."""
        given = _Records(records)
        return self.library.check(
            self.library.c.ckv_batch_events(self.handle, *given.arguments, ctypes.c_int64(appended))
        )

    def user_events(self, tensors: Arrays, user: int, graph: str) -> bytes:
        """The record of one user's real events of a call."""
        out = np.zeros(_ROOM, np.uint8)
        mask = tensors["event_mask" if graph == "prefill" else "append_mask"]
        named = _Named(tensors)
        size = self.library.check(
            self.library.c.ckv_user_events(
                self.handle,
                *named.arguments,
                *map(ctypes.c_int64, (*mask.shape, user)),
                int(graph == "prefill"),
                _address(out),
            )
        )
        return out[:size].tobytes()


class SessionLibrary:
    """libckv_session_c.so."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        self.c.ckv_session.restype = ctypes.c_void_p
        self.c.ckv_session_run.restype = ctypes.c_int64
        for name in ("session_error", "onnxruntime_version"):
            getattr(self.c, f"ckv_{name}").restype = ctypes.c_char_p

    def error(self, code: int) -> CppError:
        return CppError(code, self.c.ckv_session_error().decode())

    def open(self, bundle: Path, graph: str, threads: int = 1) -> CppSession:
        handle = self.c.ckv_session(str(bundle).encode(), graph.encode(), threads)
        if handle is None:
            raise self.error(-1)
        return CppSession(self, ctypes.c_void_p(handle))


class CppSession:
    """A Session of the library."""

    def __init__(self, library: SessionLibrary, handle: ctypes.c_void_p) -> None:
        self.library, self.handle = library, handle

    def __del__(self) -> None:
        self.library.c.ckv_session_free(self.handle)

    def run(self, sizes: Mapping[str, int], tensors: Arrays) -> None:
        """Inputs and outputs, contiguous; the second are written."""
        names = (ctypes.c_char_p * len(sizes))(*(n.encode() for n in sizes))
        values = (ctypes.c_int64 * len(sizes))(*sizes.values())
        named = _Named(tensors)
        arguments = len(sizes), names, values, *named.arguments
        outcome = self.library.c.ckv_session_run(self.handle, *arguments)
        if outcome < 0:
            raise self.library.error(-1 - outcome)


class _Records:
    """Addresses and sizes of records, kept alive with them."""

    def __init__(self, records: Sequence[bytes]) -> None:
        self.raw = [np.frombuffer(r, np.uint8) for r in records]
        pointers = (ctypes.c_void_p * len(records))(*(r.ctypes.data for r in self.raw))
        sizes = (ctypes.c_int64 * len(records))(*map(len, records))
        self.arguments: list[Any] = [len(records), pointers, sizes]


class _Named:
    """Names and addresses of arrays, kept alive with them."""

    def __init__(self, arrays: Arrays, events: Sequence[int] | None = None) -> None:
        self.arrays = {n: np.ascontiguousarray(a) for n, a in arrays.items()}
        names = (ctypes.c_char_p * len(arrays))(*(n.encode() for n in arrays))
        data = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in self.arrays.values()))
        self.arguments: list[Any] = [len(arrays), names, data]
        if events is not None:
            self.arguments.append((ctypes.c_int64 * len(arrays))(*events))


def _user_tensors(layout: RecordLayout, arrays: Arrays) -> _Named:
    axes = {f.name: f.axis for f in layout.fields}
    return _Named(arrays, [a.shape[axes[n]] for n, a in arrays.items()])


def _kept(layout: RecordLayout, field: Field, events: int) -> int:
    return events if field in layout.events.fields else layout.window_rows(events)


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """A bundle of a manifest alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest.to_dict()))
    return folder

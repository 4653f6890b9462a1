"""Python and C++ read, write and append each other's records, byte for byte."""

from __future__ import annotations

import ctypes
import hashlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ckv_cpp import CppError, CppLayout, Library, write_manifest
from ckv_testing.records import LAYOUTS, MANIFESTS, cut, user

from ckv_export.cache.record import (
    RecordLayout,
    append,
    batch,
    decode,
    encode,
    user_events,
)
from ckv_export.errors import RecordError

RECORD_CODE = 1  # ErrorCode::kRecord
Pair = Callable[[str], tuple[RecordLayout, CppLayout]]
every_layout = pytest.mark.parametrize("name", LAYOUTS)


@pytest.fixture(scope="module")
def pair(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A layout of `LAYOUTS` in both languages."""
    base = tmp_path_factory.mktemp("manifests")
    folders = {
        name: write_manifest(base / str(i), m) for i, (name, m) in enumerate(MANIFESTS.items())
    }

    def get(name: str) -> tuple[RecordLayout, CppLayout]:
        manifest, user_dtype = name.rsplit(", ", 1)
        return LAYOUTS[name], library.layout(folders[manifest], user_dtype)

    return get


@every_layout
def test_layouts(name: str, pair: Pair):
    python, cpp = pair(name)
    assert cpp.describe() == python.describe()
    assert cpp.pad_to() == python.pad_to


@every_layout
def test_records(name: str, pair: Pair, rng):
    python, cpp = pair(name)
    for events in (0, 1, 2, 4, 5, int(rng.integers(6, 60))):
        arrays = user(python, events, rng)
        data = encode(python, arrays)
        assert cpp.encode(python, arrays) == data
        wanted = decode(python, data)
        got = cpp.decode(python, data)
        for field in python.fields:
            np.testing.assert_array_equal(got[field.name], wanted[field.name], strict=True)


@every_layout
def test_appends_take_turns(name: str, pair: Pair, rng):
    """A record that both languages append to is the one that Python would have written alone."""
    python, cpp = pair(name)
    arrays = user(python, 40, rng)
    data = encode(python, cut(python, arrays, 0, 0))
    start, kept, most = 0, 0, int(rng.integers(1, 30))
    while start < 40:
        end = min(40, start + int(rng.integers(0, 8)))
        cap = most if rng.random() < 0.3 else None
        new = cut(python, arrays, start, end)
        in_python = append(python, data, new, max_events=cap)
        assert cpp.append(python, data, new, cap) == in_python
        kept = kept + end - start if cap is None else min(cap, kept + end - start)
        data, start = in_python, end
    assert data == encode(python, cut(python, arrays, 40 - kept, 40))


@every_layout
@pytest.mark.parametrize("size", [None, 0, 3, 40])
def test_batches(name: str, size: int | None, pair: Pair, rng):
    python, cpp = pair(name)
    records = [encode(python, user(python, n, rng)) for n in (3, 0, 1, 23, 4, 5)]
    wanted = batch(python, records, size)
    out = {n: np.full(a.shape, 1, a.dtype) for n, a in wanted.items()}
    assert cpp.batch(python, records, size, out) == wanted["history_mask"].shape[1]
    for tensor, array in wanted.items():
        np.testing.assert_array_equal(out[tensor], array, err_msg=tensor)


@every_layout
@pytest.mark.parametrize(
    ("graph", "entry", "event"), [("prefill", "cache", "event"), ("decode", "append", "append")]
)
def test_events_of_a_call(name: str, graph: str, entry: str, event: str, pair: Pair, rng):
    python, cpp = pair(name)
    tensors = {f"{event}_mask": rng.random((3, 7)) < 0.6}
    users = [user(python, 7, rng) for _ in range(3)]
    for field in python.fields:
        kind, suffix = field.name.split("_", 1)
        stacked = np.stack([u[field.name] for u in users])
        tensors[f"{entry if kind == 'cache' else event}_{suffix}"] = stacked
    for number in range(3):
        wanted = encode(python, user_events(python, tensors, number, graph=graph))
        assert cpp.user_events(tensors, number, graph) == wanted


def reseal(layout: RecordLayout, data: bytearray) -> None:
    if len(data) < 64:
        return
    rows = struct.unpack_from("<I", data, 36)[0]
    window = min(len(data), 64 + rows * layout.window.row_bytes)
    struct.pack_into("<I", data, 48, zlib.crc32(data[64:window]))
    struct.pack_into("<I", data, 52, zlib.crc32(data[window:]))
    struct.pack_into("<I", data, 60, zlib.crc32(data[:60]))


@every_layout
def test_hostile_records_get_the_same_answer(name: str, pair: Pair, rng):
    """Refused by both, or read by both as the same."""
    python, cpp = pair(name)
    good = encode(python, user(python, 5, rng))
    hostile = [good[:n] for n in rng.integers(0, len(good), 20)] + [b"", good + b"\0"]
    for _ in range(100):
        data = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        if rng.random() < 0.7:
            reseal(python, data)
        hostile.append(bytes(data))
    for other in LAYOUTS.values():
        hostile.append(encode(other, user(other, 3, rng)))
    answers = set()
    for data in hostile:
        try:
            wanted = decode(python, data)
        except RecordError:
            with pytest.raises(CppError) as refused:
                cpp.decode(python, data)
            assert refused.value.code == RECORD_CODE
            answers.add("refused")
            continue
        got = cpp.decode(python, data)
        answers.add("read")
        for field in python.fields:
            np.testing.assert_array_equal(got[field.name], wanted[field.name], strict=True)
    assert answers == {"refused", "read"}


@every_layout
def test_both_refuse_what_can_not_be_written(name: str, pair: Pair, rng):
    python, cpp = pair(name)
    for field in python.fields:
        arrays = user(python, 3, rng)
        if not arrays[field.name].size:
            continue
        bad = np.inf if field.dtype == "float32" else field.rows
        if bad is None:
            continue
        arrays[field.name].reshape(-1)[-1] = bad
        with pytest.raises(RecordError):
            encode(python, arrays)
        with pytest.raises(CppError) as refused:
            cpp.encode(python, arrays)
        assert refused.value.code == RECORD_CODE


def test_numbers_near_every_edge_of_a_half(library: Library, rng):
    bits = np.arange(2**16, dtype=np.uint16)
    halves = bits.view(np.float16)
    got = np.zeros(2**16, np.float32)
    library.c.ckv_from_half(_pointer(bits), len(bits), _pointer(got))
    np.testing.assert_array_equal(got, halves.astype(np.float32))
    around = got[np.isfinite(got)]
    numbers = np.concatenate(
        [
            rng.integers(0, 2**32, 200000, dtype=np.uint32).view(np.float32),
            (rng.standard_normal(200000) * 10.0 ** rng.integers(-9, 6, 200000)).astype(np.float32),
            np.nextafter(around, np.float32(np.inf)),
            np.nextafter(around, np.float32(-np.inf)),
        ]
    )
    numbers = numbers[~np.isnan(numbers)]
    out = np.zeros(len(numbers), np.uint16)
    library.c.ckv_to_half(_pointer(numbers), len(numbers), _pointer(out))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, numbers.astype(np.float16).view(np.uint16))


def test_checksums(library: Library, rng):
    for size in (0, 1, 7, 8, 9, 55, 56, 63, 64, 65, 1000):
        data = rng.integers(0, 256, size, dtype=np.uint8)
        start = int(rng.integers(0, 2**32))
        got = library.c.ckv_crc32(_pointer(data), ctypes.c_int64(size), ctypes.c_uint32(start))
        assert got == zlib.crc32(data.tobytes(), start)
        text = ctypes.create_string_buffer(65)
        pieces = ctypes.c_int64(int(rng.integers(1, 100)))
        library.c.ckv_sha256(_pointer(data), ctypes.c_int64(size), pieces, text)
        assert text.value.decode() == hashlib.sha256(data.tobytes()).hexdigest()


def _pointer(array: np.ndarray):
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture
def bundle(tmp_path: Path, rng) -> Path:
    """A bundle as the package writes it, of files that nobody reads."""
    manifest = MANIFESTS["item table"]
    for graph in manifest.graph_names:
        (tmp_path / f"{graph}.onnx").write_bytes(rng.bytes(int(rng.integers(1, 3_000_000))))
    (tmp_path / "item_table.safetensors").write_bytes(b"")
    manifest.with_files(tmp_path).write(tmp_path)
    return tmp_path


def test_a_bundle_is_verified(library: Library, bundle: Path):
    layout = library.layout(bundle, "float16", verify=True)
    assert layout.describe() == LAYOUTS["item table, float16"].describe()
    whole = (bundle / "decode.onnx").read_bytes()
    (bundle / "decode.onnx").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CppError, match=r"decode\.onnx is not the file that was exported"):
        library.layout(bundle, "float16", verify=True)
    library.layout(bundle, "float16", "decode")
    with pytest.raises(CppError, match="graphs decode, decode_items, prefill, not 'decode_it'"):
        library.layout(bundle, "float16", "decode_it")

"""The item tables and pools that Python writes are those that C++ reads."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from ckv_cpp import CppError, Library, write_manifest
from ckv_testing.records import MANIFESTS, manifest

from ckv_export.cache.item_table import FILE_NAME, save_item_table
from ckv_export.cache.pool_file import save_pools
from ckv_export.contract import EventForm
from ckv_export.manifest import POOLS_FILE

MANIFEST = MANIFESTS["item table"]
TENSORS = [t for t in MANIFEST.graph("decode_items").inputs if t.name.startswith("item_")]
ITEMS = 13


@pytest.fixture
def bundle(tmp_path: Path, rng) -> tuple[Path, dict[str, np.ndarray]]:
    """A bundle of a manifest and a table, and the table."""
    table = {}
    for tensor in TENSORS:
        numbers = rng.integers(-100, 100, tensor.shape({"I": ITEMS}))
        table[tensor.name] = (numbers / 4).astype(tensor.dtype)
    write_manifest(tmp_path, MANIFEST)
    save_item_table(tmp_path, table)
    return tmp_path, table


def test_it_is_read(library: Library, bundle):
    folder, table = bundle
    assert library.tensor_file(folder) == ITEMS
    for name, wanted in table.items():
        got = np.zeros_like(wanted)
        library.tensor_file(folder, name, got)
        np.testing.assert_array_equal(got, wanted)
    with pytest.raises(CppError, match="it has no tensor 'item_other'"):
        library.tensor_file(folder, "item_other", np.zeros(1))


def test_every_truncation_is_refused(library: Library, bundle):
    folder, _ = bundle
    data = (folder / FILE_NAME).read_bytes()
    for length in range(0, len(data), 5):
        (folder / FILE_NAME).write_bytes(data[:length])
        with pytest.raises(CppError, match="is no file of these tensors: "):
            library.tensor_file(folder)


def edited(data: bytes, **changes: object) -> bytes:
    """The table with other entries for ``item_k_user``; a value of None removes the tensor."""
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + length])
    header["item_k_user"] |= changes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "F64"},
        {"shape": [ITEMS, 3]},
        {"shape": [ITEMS + 1, 2]},
        {"shape": []},
        {"shape": [-1, 2]},
        {"shape": "x"},
        {"data_offsets": [0, 1 << 40]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [0]},
        {"data_offsets": [-8, 96]},
    ],
)
def test_a_header_that_does_not_fit_is_refused(library: Library, bundle, changes):
    folder, _ = bundle
    data = (folder / FILE_NAME).read_bytes()
    (folder / FILE_NAME).write_bytes(edited(data, **changes))
    with pytest.raises(CppError):
        library.tensor_file(folder)
    (folder / FILE_NAME).write_bytes(edited(data))
    assert library.tensor_file(folder) == ITEMS


def test_junk_is_refused(library: Library, bundle, rng):
    folder, _ = bundle
    huge = struct.pack("<Q", 1 << 60)
    for junk in (huge, rng.bytes(500), struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 1) + b"{"):
        (folder / FILE_NAME).write_bytes(junk)
        with pytest.raises(CppError, match="is no file of these tensors: "):
            library.tensor_file(folder)
    (folder / FILE_NAME).unlink()
    with pytest.raises(CppError, match="is no file of these tensors: it can't be read"):
        library.tensor_file(folder)
    write_manifest(folder, MANIFESTS["two ids"])
    with pytest.raises(CppError, match="has the graphs decode, prefill, not 'decode_items'"):
        library.tensor_file(folder)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pools(library: Library, dtype: str, tmp_path: Path, rng):
    model = manifest(window=None, layers=2, pools=(10, 7), form=EventForm(pools=dtype))
    specs = [t for t in model.graph("decode").inputs if t.name.startswith("pool_")]
    assert len(specs) == 4
    pools = {t.name: rng.standard_normal(t.shape({})).astype(dtype) for t in specs}
    write_manifest(tmp_path, model)
    save_pools(tmp_path / POOLS_FILE, pools, "ab" * 32, "cd" * 32)
    for name, wanted in pools.items():
        got = np.zeros_like(wanted)
        assert library.tensor_file(tmp_path, name, got, pools=True) == 0
        np.testing.assert_array_equal(got, wanted)
    other = {name: pool[:, 1:] for name, pool in pools.items()}
    save_pools(tmp_path / POOLS_FILE, other, "ab" * 32, "cd" * 32)
    with pytest.raises(CppError, match="'pool_k_0' is not that of the graph"):
        library.tensor_file(tmp_path, pools=True)
    write_manifest(tmp_path, MANIFESTS["two ids"])
    with pytest.raises(CppError, match="hold their pools: export with --pool input"):
        library.tensor_file(tmp_path, pools=True)

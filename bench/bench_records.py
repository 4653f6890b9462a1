"""What does it cost a host to make decode's inputs of stored records?

    python bench/bench_records.py --json bench/results/records.json

Records of users with 1000 events each (row numbers, user parts and item ids: a SIM of d 256, d_u 2,
M 10000 whose graphs take ids alone) become left-padded arrays: checksums and ranges checked, on one
core. `ckv_export.cache.record.batch` makes new arrays, with memory as a server keeps it;
`ckv::batch` of engines/cpp fills the caller's. Both must give the same bytes. Needs cmake and a C++
compiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import models
import numpy as np
from bench_sweep import silent

from ckv_export.bench.allocator import keep_freed_memory
from ckv_export.bench.environment import environment
from ckv_export.cache.record import USER_DTYPES, RecordLayout, batch, encode
from ckv_export.checkpoint.native import save_native
from ckv_export.deploy.bundle import ExportRequest, export_bundle
from ckv_export.deploy.prepare import FormRequest
from ckv_export.manifest import FILE_NAME, read_manifest
from ckv_export.stages import Stages

SCHEMA_VERSION = 1
ROOT = Path(__file__).resolve().parents[1]
EVENTS, USERS, CALLS = 1000, (1, 16, 64), 100


def bundle(folder: Path, rng: np.random.Generator) -> Path:
    """An export of the model whose events are item ids."""
    spec = models.sim_spec(256, 8, 2, 10000, EVENTS)
    ids, cates, image = spec.features
    items = {
        ids.name: np.arange(ids.vocab_size, dtype=np.int32),
        cates.name: rng.integers(1, cates.vocab_size, ids.vocab_size, dtype=np.int32),
        image.name: rng.standard_normal((ids.vocab_size, image.length), dtype=np.float32),
    }
    np.savez(folder / "items.npz", **items)
    save_native(folder / "model.pt", spec, models.weights(spec))
    form = FormRequest(item_features=folder / "items.npz")
    request = ExportRequest(folder / "model.pt", folder, parity=False, form=form)
    return export_bundle(request, Stages(), silent).folder


def record(layout: RecordLayout, rng: np.random.Generator) -> bytes:
    """A user of `EVENTS` drawn events."""
    arrays = {}
    for field in layout.fields:
        shape = field.tensor_shape(EVENTS)
        if field.dtype == "int32":
            arrays[field.name] = rng.integers(0, field.rows or 1, shape, dtype=np.int32)
        else:
            arrays[field.name] = rng.standard_normal(shape, dtype=np.float32)
    return encode(layout, arrays)


def python_microseconds(layout: RecordLayout, records: list[bytes]) -> float:
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        batch(layout, records, EVENTS)
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e6, 1)


def built(folder: Path) -> Path:
    """The timing program, with the library as it is released."""
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DCKV_TESTS=OFF", "-DCKV_ENGINE=OFF"]
    sources, program = ROOT / "engines/cpp", folder / "time_batch"
    linked = ROOT / "bench/time_batch.cpp", folder / "cpp/libckv.a"
    for command in (
        ["cmake", "-S", sources, "-B", folder / "cpp", *options],
        ["cmake", "--build", folder / "cpp"],
        ["c++", "-std=c++17", f"-I{sources / 'include'}", *linked, "-o", program],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return program


def cpp_microseconds(
    program: Path, manifest: Path, layout: RecordLayout, records: list[bytes]
) -> float:
    """Of `ckv::batch`, once its tensors were found to be Python's."""
    with tempfile.TemporaryDirectory() as folder:
        stored, out = Path(folder) / "records", Path(folder) / "tensors"
        stored.write_bytes(b"".join(records))
        arguments = [manifest, stored, len(records), EVENTS, layout.user_dtype, out]
        printed = subprocess.check_output([program, *map(str, arguments)], text=True)
        tensors = batch(layout, records, EVENTS)
        wanted = b"".join(tensors[name].tobytes() for name in sorted(tensors))
        if out.read_bytes() != wanted:
            raise SystemExit("ckv::batch and ckv_export.cache.record.batch differ")
    return float(printed)


def measured(program: Path, folder: Path, user_dtype: str, rng: np.random.Generator) -> list[dict]:
    layout = RecordLayout.of(read_manifest(folder), user_dtype)
    drawn = [record(layout, rng) for _ in range(max(USERS))]
    rows = []
    for users in USERS:
        records = drawn[:users]
        row = {
            "user_dtype": user_dtype,
            "users": users,
            "record_bytes": len(drawn[0]),
            "python_microseconds": python_microseconds(layout, records),
            "cpp_microseconds": cpp_microseconds(program, folder / FILE_NAME, layout, records),
        }
        print(row)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    made, rng = environment(), np.random.default_rng(0)
    kept = keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), []
        program, exported = built(folder), bundle(folder, rng)
        for user_dtype in USER_DTYPES:
            rows += measured(program, exported, user_dtype, rng)
    result = {
        "schema_version": SCHEMA_VERSION,
        "environment": made,
        "events": EVENTS,
        "freed_memory_kept": kept,
        "rows": rows,
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

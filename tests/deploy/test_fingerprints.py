"""A bundle's three fingerprints are of one reading of its weights, and refuse those of before."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ckv_testing.draw import draw_state, make_spec
from ckv_testing.fingerprints import State, slow_fingerprints
from ckv_testing.records import manifest, user

from ckv_export.cache.record import RecordLayout, count, encode
from ckv_export.checkpoint.native import save_native
from ckv_export.contract import ModelSpec
from ckv_export.deploy.bundle import ExportRequest, export_bundle
from ckv_export.deploy.pools import write_pools
from ckv_export.deploy.prepare import FormRequest
from ckv_export.errors import RecordError
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model import fingerprint
from ckv_export.model.fingerprint import Fingerprints, determines_entries
from ckv_export.model.registry import build_model
from ckv_export.stages import Stages

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = make_spec("sim", "K not shared, biases, 4 heads")


# -- what export and pool do with them


class CountingHashes:
    """`hashlib`, and how many bytes of tensors it was given."""

    def __init__(self) -> None:
        self.bytes = 0

    def sha256(self, start: bytes) -> CountingHashes.Digest:
        return self.Digest(self, hashlib.sha256(start))

    @dataclasses.dataclass
    class Digest:
        counting: CountingHashes
        inner: Any

        def update(self, data: memoryview) -> None:
            self.counting.bytes += data.nbytes
            self.inner.update(data)

        def hexdigest(self) -> str:
            return self.inner.hexdigest()


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingHashes]:
    counted = CountingHashes()
    monkeypatch.setattr(fingerprint, "hashlib", counted)
    return counted


def no_display() -> None:
    raise AssertionError("no engine is built")


def test_an_export_and_a_pool_file_read_the_weights_once(
    tmp_path: Path, rng: np.random.Generator, counting: CountingHashes
):
    state = draw_state(SPEC, rng)
    size = sum(tensor.nbytes for tensor in state.values())
    save_native(tmp_path / "model.pt", SPEC, state)
    request = ExportRequest(
        tmp_path / "model.pt", tmp_path, parity=False, form=FormRequest(pool="input")
    )
    made = export_bundle(request, Stages(), no_display)
    assert counting.bytes == size
    expected = slow_fingerprints(SPEC, state, "")
    assert made.manifest.fingerprint == expected.model
    assert made.manifest.fingerprints == {
        "entries": expected.entries,
        "all but pools": expected.but_pools,
        "looked up": "",
    }
    padding = PrefillGraph(build_model(SPEC, state)).padding()
    assert made.manifest.padding == padding != {}
    new = write_pools(made.folder, tmp_path / "model.pt", tmp_path / "new.safetensors")
    assert counting.bytes == 2 * size
    assert (new.fingerprint, new.caches_valid) == (expected.model, True)


# -- fingerprints of before


def of_before(spec: ModelSpec, state: State) -> str:
    """The fingerprint of entries as bundles of schema version 2 had it."""
    told = spec.to_dict()
    described = {name: told[name] for name in ("attention", "num_layers")}
    described["features"] = [f for f in told["features"] if f["role"] == "item"]
    described["looked_up"] = ""
    text = json.dumps(described, sort_keys=True).encode()
    for name in sorted(n for n in state if determines_entries(spec, n)):
        tensor = state[name]
        text += f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + tensor.numpy().tobytes()
    return hashlib.sha256(text).hexdigest()


def test_a_record_of_before_is_refused(rng: np.random.Generator):
    state = draw_state(SPEC, rng)
    old, new = of_before(SPEC, state), Fingerprints.of(SPEC, state).entries
    before, now = (
        RecordLayout.of(dataclasses.replace(manifest(), fingerprints={"entries": entries}))
        for entries in (old, new)
    )
    record = encode(before, user(before, 2, rng))
    assert count(before, record) == 2
    says = f"of model {old[:32]}, this is {new[:32]}: prefill the user again"
    with pytest.raises(RecordError, match=says):
        count(now, record)

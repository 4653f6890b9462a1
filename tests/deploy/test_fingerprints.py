"""A bundle's three fingerprints are of one reading of its weights, and refuse those of before."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ckv_testing.draw import RICH, draw_state, make_spec
from ckv_testing.records import manifest, user
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ckv_export.cache.record import RecordLayout, count, encode
from ckv_export.checkpoint.native import save_native
from ckv_export.contract import ModelSpec
from ckv_export.deploy.bundle import ExportRequest, export_bundle
from ckv_export.deploy.pools import write_pools
from ckv_export.deploy.prepare import FormRequest
from ckv_export.errors import RecordError
from ckv_export.model import fingerprint
from ckv_export.model.fingerprint import COPIED, Fingerprints, determines_entries
from ckv_export.stages import Stages

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = make_spec("sim", features=RICH)
PACKED = {"float32": "f", "float64": "d", "float16": "e", "int64": "q", "int32": "i", "bool": "?"}
State = dict[str, Tensor]


# -- the slow form, from the module's own description


def packed(tensor: Tensor) -> bytes:
    """Every value on its own, little-endian."""
    kind = str(tensor.dtype).removeprefix("torch.")
    values = tensor.flatten().tolist()
    if kind == "bfloat16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return b"".join(struct.pack(f"<{PACKED[kind]}", value) for value in values)


def hashed(described: Any, state: State) -> str:
    digests = {}
    for name, tensor in state.items():
        about = {"dtype": str(tensor.dtype)[6:], "shape": list(tensor.shape)}
        digests[name] = hashlib.sha256(json.dumps(about).encode() + packed(tensor)).hexdigest()
    text = json.dumps({"described": described, "tensors": digests}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def slow(spec: ModelSpec, state: State, looked_up: str) -> Fingerprints:
    told = spec.to_dict()
    items = [f for f in told["features"] if f["role"] == "item"]
    encoding = {
        "attention": told["attention"],
        "num_layers": told["num_layers"],
        "features": items,
        "looked_up": looked_up,
    }
    return Fingerprints(
        hashed(told, state),
        hashed(told, {n: t for n, t in state.items() if not n.endswith(".pool")}),
        hashed(encoding, {n: t for n, t in state.items() if determines_entries(spec, n)}),
        looked_up,
    )


def odd_tensors() -> State:
    """What a state dict may hold beside plain weights; the names take part in all fingerprints."""
    numbers = torch.arange(24.0).reshape(4, 6) - 7.3
    odd = {
        "half": numbers.half(),
        "bfloat": numbers.bfloat16(),
        "double": numbers.double(),
        "mask": numbers > 0,
        "ids": numbers.long(),
        "small ids": numbers.int(),
        "scalar": torch.tensor(3.5),
        "flag": torch.tensor(True),
        "none of five": torch.zeros(0, 5),
        "five of none": torch.zeros(5, 0),
        "half of none": torch.zeros(0).half(),
        "turned": numbers.T,
        "every second": numbers[:, ::2],
        "one of six": numbers[1, ::6],
        "one for all": torch.tensor([2.0]).expand(3, 4),
        "learned": numbers.clone().requires_grad_(),
    }
    return {f"attention.0.k.{name}": tensor for name, tensor in odd.items()}


def test_fingerprints_are_those_of_every_value_packed(rng: np.random.Generator):
    state = draw_state(SPEC, rng) | odd_tensors()
    assert Fingerprints.of(SPEC, state, "ab") == slow(SPEC, state, "ab")
    backwards = dict(reversed(state.items()))
    assert Fingerprints.of(SPEC, backwards, "ab") == slow(SPEC, state, "ab")


@pytest.mark.parametrize("name", odd_tensors())
def test_shape_and_dtype_are_told_apart_without_a_value(name: str, rng: np.random.Generator):
    """The same bytes under another shape or dtype, none of them included, are another tensor."""
    state = draw_state(SPEC, rng) | odd_tensors()
    tensor = state[name].detach()
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    other = whole[tensor.element_size()]
    if other == tensor.dtype:
        other = {4: torch.float32, 8: torch.float64}[tensor.element_size()]
    typed = tensor.clone(memory_format=torch.contiguous_format).view(other)
    assert typed.shape == tensor.shape
    seen = [Fingerprints.of(SPEC, state | {name: t}) for t in (tensor, tensor[None], typed)]
    for one in ("model", "but_pools", "entries"):
        assert len({getattr(made, one) for made in seen}) == 3, one


def test_mapped_state_has_the_fingerprints_of_the_one_in_memory(
    tmp_path: Path, rng: np.random.Generator
):
    state = draw_state(SPEC, rng)
    torch.save(state, tmp_path / "state.pt")
    mapped = torch.load(tmp_path / "state.pt", mmap=True)
    assert Fingerprints.of(SPEC, mapped) == Fingerprints.of(SPEC, state)


# -- nothing big is copied


class Copies(TorchDispatchMode):
    """Records the bytes of the largest memory that an operation made."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.known = {given.untyped_storage().data_ptr()}
        self.largest = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.known:
                self.largest = max(self.largest, storage.nbytes())
        return result


def big(layout: str) -> Tensor:
    """Three times what may be copied at once, and one number more."""
    numbers = torch.arange(3 * COPIED // 4 + 1, dtype=torch.int32)
    tall = numbers[:-1].reshape(-1, 64)
    return {
        "as it lies": numbers,
        "turned": tall.T,
        "every second": tall[:, ::2],
        "one row": torch.stack([numbers, numbers], -1)[None, :, 0],
        "same row": numbers[:64].expand(len(tall), 64),
    }[layout]


@pytest.mark.parametrize("layout", ["as it lies", "turned", "every second", "one row", "same row"])
def test_a_big_tensor_is_read_in_place_or_in_pieces(layout: str):
    tensor = big(layout)
    state = {"input.weight": tensor}
    with Copies(tensor) as copies:
        made = Fingerprints.of(SPEC, state)
    assert made == Fingerprints.of(SPEC, {"input.weight": tensor.contiguous()})
    if tensor.is_contiguous():
        assert copies.largest == 0
    else:
        assert 0 < copies.largest <= COPIED


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
    expected = slow(SPEC, state, "")
    assert made.manifest.fingerprint == expected.model
    assert made.manifest.fingerprints == {
        "entries": expected.entries,
        "all but pools": expected.but_pools,
        "looked up": "",
    }
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

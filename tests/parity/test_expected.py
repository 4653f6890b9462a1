"""Recorded cases: what the reference answers, written and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ckv_testing.draw import PLAIN, RICH, draw_cases, draw_state, make_spec
from ckv_testing.slow import Slow

from ckv_export.contract import EventForm, FeatureSpec, decode_io, prefill_io
from ckv_export.errors import BundleError
from ckv_export.model.reference import Reference
from ckv_export.parity.expected import ExpectedCase, load, record, save

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def recorded(seed: int, rng: np.random.Generator) -> list[ExpectedCase]:
    spec = make_spec("sim", "K not shared, biases, 4 heads")
    return record(Reference(spec, draw_state(spec, rng)), draw_cases(spec, seed))


def test_outputs_are_those_of_both_graphs(recorded: list[ExpectedCase]):
    spec = make_spec("sim", "K not shared, biases, 4 heads")
    wanted = {t.name: t for io in (prefill_io(spec), decode_io(spec)) for t in io.outputs}
    for case in recorded:
        assert set(case.outputs) == set(wanted)
        first = case.case.inputs["candidate_item_id"]
        sizes = {"B": len(first), "C": first.shape[1]}
        sizes |= {"S": case.case.cached, "T": case.case.appended}
        for name, array in case.outputs.items():
            assert array.shape == wanted[name].shape(sizes)
            assert str(array.dtype) == wanted[name].dtype
        assert set(case.margins) == {"cache_v_index", "append_v_index"}
        for name, margin in case.margins.items():
            assert margin.shape == case.outputs[name].shape


@pytest.mark.parametrize("features", [PLAIN, RICH])
def test_external_embeddings_are_given_where_the_graphs_take_them(
    features: tuple[FeatureSpec, ...], rng: np.random.Generator
):
    """Of the user only where it has features."""
    spec = make_spec("sim", features=features)
    form = EventForm("external")
    for case in record(Reference(spec, draw_state(spec, rng)), draw_cases(spec, 0)[:6], form):
        inputs = case.case.inputs
        sizes = {"B": len(inputs["history_mask"]), "C": inputs["candidate_embedding"].shape[1]}
        sizes |= {"S": case.case.cached, "T": case.case.appended}
        wanted = {t.name: t for t in decode_io(spec, form).inputs if "cache_" not in t.name}
        assert set(inputs) == set(wanted)
        assert all(inputs[name].shape == t.shape(sizes) for name, t in wanted.items())


def test_margin_is_the_lead_of_the_best_row(seed: int, rng: np.random.Generator):
    """Of an event that ties all rows, none: no rounding makes another of them the first."""
    spec = make_spec("sim")
    state = draw_state(spec, rng)
    slow = Slow(spec, state)
    ties = {"all": 0, "two": 0}
    for case in record(Reference(spec, state), draw_cases(spec, seed)):
        for b in range(len(case.case.inputs["history_mask"])):
            events, _ = slow.history(case.case.inputs, b)
            for side in "kv":
                parts = [case.margins[f"{part}_{side}_index"][b, 0] for part in ("cache", "append")]
                for x, margin in zip(events, np.concatenate(parts), strict=True):
                    logits = np.sort(slow.linear(x, f"attention.0.{side}.router"))
                    same = logits[0] == logits[-1]
                    assert margin == (np.inf if same else logits[-1] - logits[-2])
                    ties["all" if same else "two"] += bool(same or margin == 0)
    assert all(ties.values()), "not every kind of tie was drawn"


def test_margin_of_a_pool_with_one_row_is_infinite(seed: int, rng: np.random.Generator):
    """Nothing to be confused with: no flip could ever be excused."""
    spec = make_spec("sim", "one row, wide window and search")
    case = record(Reference(spec, draw_state(spec, rng)), draw_cases(spec, seed)[2:3])[0]
    assert np.isposinf(case.margins["cache_k_index"]).all()
    assert not case.outputs["cache_k_index"].any()


def same(a: ExpectedCase, b: ExpectedCase) -> bool:
    groups = [(a.case.inputs, b.case.inputs), (a.outputs, b.outputs), (a.margins, b.margins)]
    return a.case.name == b.case.name and all(
        one.keys() == two.keys()
        and all(
            one[n].dtype == two[n].dtype and np.array_equal(one[n], two[n], equal_nan=True)
            for n in one
            if one[n].dtype.kind == "f"
        )
        and all(np.array_equal(one[n], two[n]) and one[n].dtype == two[n].dtype for n in one)
        for one, two in groups
    )


def test_saved_cases_read_back(recorded: list[ExpectedCase], tmp_path: Path):
    path = tmp_path / "cases.npz"
    save(path, recorded)
    loaded = load(path)
    assert len(loaded) == len(recorded) > 10
    assert all(same(a, b) for a, b in zip(loaded, recorded, strict=True))
    assert loaded[3].case.cached == recorded[3].case.cached


def test_no_cases_at_all(tmp_path: Path):
    save(tmp_path / "cases.npz", [])
    assert load(tmp_path / "cases.npz") == []


def test_recording_is_deterministic(seed: int, rng: np.random.Generator):
    spec = make_spec("eta")
    reference = Reference(spec, draw_state(spec, rng))
    cases = draw_cases(spec, seed)
    assert all(map(same, record(reference, cases), record(reference, cases)))


def test_recording_builds_no_autograd_graph(seed: int, rng: np.random.Generator):
    spec = make_spec("sim")
    state = {n: t.requires_grad_() for n, t in draw_state(spec, rng).items()}
    record(Reference(spec, state), draw_cases(spec, seed)[:3])
    assert all(t.grad is None for t in state.values())
    assert torch.is_grad_enabled()


def junk(path: Path, recorded: list[ExpectedCase]) -> dict[str, bytes]:
    """Files that are no recorded cases, by what is wrong with them."""
    save(path, recorded)
    raw = path.read_bytes()
    inner = bytearray(raw)
    for i in range(60, 100):
        inner[i] ^= 0xFF
    np.savez(path, other=np.zeros(3))
    other = path.read_bytes()
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    plain = path.read_bytes()
    np.savez(path, names=np.array([object()], dtype=object))
    pickled = path.read_bytes()
    np.savez(path, names=np.array(["a"]), **{"0/in": np.zeros(3)})
    short_key = path.read_bytes()
    return {
        "empty": b"",
        "text": b"hello",
        "truncated": raw[: len(raw) // 2],
        "compressed data damaged": bytes(inner),
        "another npz": other,
        "npy": plain,
        "pickled": pickled,
        "key without a tensor": short_key,
        "end of a zip": b"PK\x05\x06" + b"\0" * 5,
        "start of a zip": b"PK\x03\x04" + b"\0" * 50,
    }


@pytest.mark.parametrize(
    "what",
    ["empty", "text", "truncated", "compressed data damaged", "another npz",
     "npy", "pickled", "key without a tensor", "end of a zip", "start of a zip"],
)  # fmt: skip
def test_anything_else_is_refused(what: str, recorded: list[ExpectedCase], tmp_path: Path):
    path = tmp_path / "cases.npz"
    path.write_bytes(junk(path, recorded[:3])[what])
    with pytest.raises(BundleError, match="holds no recorded parity cases") as error:
        load(path)
    assert str(path) in str(error.value)


def test_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(BundleError, match="holds no recorded parity cases"):
        load(tmp_path / "none.npz")

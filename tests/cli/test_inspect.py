"""`ckv-export inspect MODEL|BUNDLE`: both tell the same, and what they tell is right."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckv_export.cache.record import HEADER_BYTES
from ckv_export.checkpoint.native import save_native
from ckv_export.deploy.inspect import open_subject
from ckv_export.manifest import open_bundle

CASE = "b7_L48"
"""A recorded case whose whole history lies in the window: the row of every event is recorded."""

Inspect = Callable[..., dict[str, Any]]


@pytest.fixture
def inspect(cli) -> Inspect:
    """The report as data."""

    def run(*words: str | Path) -> dict[str, Any]:
        result = cli("inspect", *words, "--json")
        assert result.code == 0, result.err
        assert result.err == ""
        return json.loads(result.out)

    return run


@pytest.fixture(scope="session")
def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    """The tensors as the training code named them: the sizes follow from their shapes."""
    (path,) = run_folder.glob("*.model")
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="session")
def recorded(samples: Path) -> dict[str, np.ndarray]:
    """What the paper authors' code recorded of `CASE`."""
    with np.load(samples / "sim_micro" / "golden.npz") as file:
        return {n.split("/", 1)[1]: file[n] for n in file.files if n.startswith(f"{CASE}/")}


@pytest.fixture
def events(recorded, tmp_path: Path) -> Path:
    """The recorded histories as a file of events."""
    arrays = {
        f"event_{name.rsplit('/', 1)[1]}": array[:, :-1]
        for name, array in recorded.items()
        if name.startswith("in/item/")
    }
    np.savez(tmp_path / "clicks.npz", event_mask=recorded["in/mask"] > 0, **arrays)
    return tmp_path / "clicks.npz"


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where JSON data differs; floats may by what fp32 sums in another order do."""
    if isinstance(a, float) and isinstance(b, float):
        return [] if a == pytest.approx(b, rel=1e-4, abs=1e-6) else [f"{where}: {a} {b}"]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [
            d
            for n, (x, y) in enumerate(zip(a, b, strict=True))
            for d in differences(x, y, f"{where}/{n}")
        ]
    return [] if a == b and type(a) is type(b) else [f"{where}: {a} {b}"]


def test_model_and_bundle_agree(inspect: Inspect, run_folder: Path, bundle: Path, events: Path):
    for words in ((), ("--events", events), ("--user-dtype", "int8", "--users", "1000")):
        of_model, of_bundle = inspect(run_folder, *words), inspect(bundle, *words)
        assert of_model.pop("name") == next(run_folder.glob("*.model")).stem
        assert of_bundle.pop("name") == bundle.name
        of_model.pop("item_table")
        assert of_bundle.pop("item_table") is None
        assert re.fullmatch("[0-9a-f]{64}", of_model["fingerprint"])
        assert differences(of_model, of_bundle) == []


def test_native_forms_of_a_model_agree(inspect: Inspect, checkpoint, run_folder, tmp_path: Path):
    reports = [inspect(run_folder)]
    for name in ("model.pt", "folder"):
        save_native(tmp_path / name, checkpoint.spec, checkpoint.state)
        reports.append(inspect(tmp_path / name))
        assert reports[-1]["name"] == Path(name).stem
    for report in reports:
        del report["name"]
    assert reports[0] == reports[1] == reports[2]


def test_another_model_has_another_fingerprint(inspect: Inspect, checkpoint, tmp_path: Path):
    """One weight changed in its last bit; and one number of the configuration."""
    found = set()
    for name, change in (("a.pt", False), ("b.pt", True)):
        state = dict(checkpoint.state)
        if change:
            pool = state["attention.0.k.pool"].clone()
            pool[0, 0] = torch.nextafter(pool[0, 0], torch.tensor(9.0))
            state["attention.0.k.pool"] = pool
        save_native(tmp_path / name, checkpoint.spec, state)
        found.add(inspect(tmp_path / name)["fingerprint"])
    assert len(found) == 2


@pytest.mark.parametrize(("dtype", "bytes_each"), [("fp32", 4), ("fp16", 2), ("int8", 1)])
def test_bytes_follow_from_the_shapes_of_the_weights(
    inspect: Inspect, run_folder: Path, weights, bundle: Path, dtype: str, bytes_each: int
):
    """Row numbers counted, SPEC section 5; the full cache is 2 d numbers an event."""
    window = json.loads((bundle / "manifest.json").read_text())["model"]["window"]
    report = inspect(run_folder, "--user-dtype", dtype, "--users", "12345")
    sizes, d = report["sizes"], weights["short_attention.W_q.weight"].shape[0]
    per_event = 0
    for side in "KV":
        rows = weights[f"short_attention.router_{side}.weight"].shape[0]
        user = weights[f"short_attention.W_{side.lower()}.weight"].shape[0]
        index_bytes = 2 if rows <= 65536 else 4
        entries = {row["what"]: row["bytes_per_event"] for row in sizes["compact"]}
        assert entries[f"{side} index"] == index_bytes
        assert entries[f"{side} user part"] == user * bytes_each
        assert sizes[f"paper_ratio_{side.lower()}"] == user / d
        per_event += sum(size for what, size in entries.items() if what.startswith(side))
    events = window - 1
    assert sizes["cached_events"] == events
    alone = next(c for c in sizes["comparisons"] if c["extras"] == "none")
    assert alone["bytes_per_user"]["compact"] == events * per_event
    assert alone["bytes_per_user"]["full_fp32"] == events * 2 * d * 4
    assert alone["ratio_fp32"] == pytest.approx(per_event / (2 * d * 4))
    assert alone["total_bytes"]["compact"] == 12345 * events * per_event
    with_ids = next(c for c in sizes["comparisons"] if c["extras"] == "item_id")
    history = report["model"]["max_len"]
    assert with_ids["bytes_per_user"]["compact"] == events * per_event + history * 4


def test_occupancy_is_what_the_authors_code_recorded(
    inspect: Inspect, bundle: Path, run_folder: Path, events: Path, recorded, weights
):
    real = recorded["in/mask"] > 0
    for subject in (bundle, run_folder):
        report = inspect(subject, "--events", events)
        assert events.name in report["events"]
        assert [o["side"] for o in report["occupancy"]] == ["k", "v"]
        for use in report["occupancy"]:
            side = use["side"].upper()
            rows = recorded[f"int/{side}_idx"][real]
            counts = np.bincount(rows)
            shares = counts[counts > 0] / real.sum()
            assert use["events"] == real.sum()
            assert use["rows"] == len(weights[f"short_attention.router_{side}.weight"])
            assert use["rows_used"] == len(shares)
            assert use["rows_dead"] == use["rows"] - len(shares)
            assert use["entropy"] == pytest.approx(-(shares * np.log(shares)).sum())
            assert use["max_row_share"] == pytest.approx(counts.max() / real.sum())


def test_spectrum_is_that_of_the_keys_and_values(
    inspect: Inspect, bundle: Path, events: Path, recorded, weights
):
    """K and V put together from the recorded rows and user parts, and numpy's own SVD."""
    real = recorded["in/mask"] > 0
    silu = torch.nn.functional.silu
    for spectrum in inspect(bundle, "--events", events)["spectrum"]:
        side = spectrum["side"]
        pool = weights[f"short_attention.global_{side.upper()}_pool"]
        rows = pool[torch.from_numpy(recorded[f"int/{side.upper()}_idx"]).long()]
        user = torch.from_numpy(recorded[f"int/usr_{side}"])
        vectors = silu(torch.cat([rows, user], dim=-1)).numpy()[real]
        values = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
        assert spectrum["events"] == real.sum()
        np.testing.assert_allclose(spectrum["singular_values"], values, rtol=1e-4, atol=1e-4)
        share = np.cumsum(values**2) / (values**2).sum()
        assert spectrum["rank_95"] == np.searchsorted(share, 0.95) + 1
        pool_share = (vectors[:, : pool.shape[1]] ** 2).sum() / (vectors**2).sum()
        assert spectrum["pool_energy"] == pytest.approx(pool_share, rel=1e-4)


def test_no_occupancy_without_events(inspect: Inspect, bundle: Path):
    """Generated ids say nothing about a pool's use; the spectrum says where its events are from."""
    first, again, other = (inspect(bundle, "--seed", seed) for seed in ("1", "1", "2"))
    assert first["occupancy"] is None
    assert "generated" in first["events"]
    assert "seed 1" in first["events"]
    assert first == again
    assert first["spectrum"] != other["spectrum"]


@pytest.mark.parametrize("name", ["sim_ebnerd", "sdim_micro"])
def test_other_samples(cli, inspect: Inspect, samples: Path, name: str):
    """User features, an item feature that is a sequence; another kind of long branch."""
    report = inspect(samples / name)
    result = cli("inspect", samples / name)
    assert result.code == 0
    for feature in report["model"]["features"]:
        assert feature["name"] in result.out.replace("\n", "")
    assert report["model"]["kind"] in result.out


def test_tables_say_the_same_as_the_data(cli, inspect: Inspect, bundle: Path, events: Path):
    report = inspect(bundle, "--events", events)
    text = cli("inspect", bundle, "--events", events).out
    assert report["fingerprint"][:16] in text
    attention = report["model"]["attention"]
    pool = attention["d"] - attention["user_k"]
    assert f"K {attention['pool_rows_k']} x {pool}" in text
    table = text.split("Pool use")[1].splitlines()
    for use in report["occupancy"]:
        words = next(x.split() for x in table if x.split()[:1] == [use["side"].upper()])
        assert {str(use[n]) for n in ("events", "rows", "rows_used", "rows_dead")} <= set(words)
    assert "clicks.npz" in text


def test_what_an_item_table_would_cost(cli, inspect: Inspect, run_folder: Path):
    report = inspect(run_folder)
    cost, events = report["item_table"], report["sizes"]["history_events"]
    text = " ".join(cli("inspect", run_folder).out.split())
    # A record without a cache: ids of four bytes.
    assert f"{HEADER_BYTES + 4 * events:,} bytes for {events:,} events" in text
    assert f"{cost['bytes_per_item']} bytes for each of {cost['items']:,} item ids" in text
    assert f"{cost['items'] * cost['bytes_per_item'] / 1e6:,.1f} MB, once" in text


@pytest.mark.parametrize(
    ("ending", "start"), [(".png", b"\x89PNG\r\n\x1a\n"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_plot_writes_a_picture(cli, bundle: Path, events: Path, tmp_path: Path, ending, start):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    path = tmp_path / f"report{ending}"
    assert cli("inspect", bundle, "--events", events, "--plot", path).code == 0
    assert path.read_bytes().startswith(start)
    assert path.stat().st_size > 10_000


def test_a_picture_of_another_kind(cli, bundle: Path, tmp_path: Path):
    """Told before anything is measured, let alone printed."""
    ran = cli("inspect", bundle, "--plot", tmp_path / "report.jpg")
    sentence = ran.sentence()
    assert ".png" in sentence
    assert "report.jpg" in sentence
    assert ran.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"event_cate_id": ...}, ("lacks", "'event_cate_id'")),
        ({"event_cate_id": np.zeros((7, 47), int)}, ("'event_cate_id'", "[7, 48]", "[7, 47]")),
        ({"event_item_id": np.full((7, 48), 10**6)}, ("'item_id'", "[0, 2001)", "1000000")),
        ({"event_mask": np.array([[{}] * 48] * 7)}, ("plain arrays",)),
    ],
)
def test_events_that_do_not_fit(refused, bundle, run_folder, events: Path, change, says):
    """Bundle and model refuse alike; tests/test_events.py has every case."""
    with np.load(events) as file:
        arrays = {name: file[name] for name in file.files} | change
    np.savez(events, **{name: a for name, a in arrays.items() if a is not ...})
    sentences = {
        refused("inspect", subject, "--events", events, watched=events.parent, says=says)
        for subject in (bundle, run_folder)
    }
    assert len(sentences) == 1


@pytest.mark.parametrize("kind", ["no users", "no events", "all masked"])
def test_events_of_nobody(inspect: Inspect, bundle, run_folder, events: Path, kind: str):
    """Nothing to measure is no error: counts are zero, and nothing is NaN."""
    with np.load(events) as file:
        arrays = {name: file[name] for name in file.files}
    cut = {"no users": np.s_[:0], "no events": np.s_[:, :0], "all masked": np.s_[:]}[kind]
    arrays = {name: a[cut] for name, a in arrays.items()}
    arrays["event_mask"] = np.zeros_like(arrays["event_mask"])
    np.savez(events, **arrays)
    for subject in (bundle, run_folder):
        report = inspect(subject, "--events", events)
        assert [use["events"] for use in report["occupancy"]] == [0, 0]
        assert [use["rows_used"] for use in report["occupancy"]] == [0, 0]
        assert [s["events"] for s in report["spectrum"]] == [0, 0]
        assert "NaN" not in json.dumps(report)


def test_a_bundle_is_found_by_its_manifest_alone(inspect: Inspect, bundle: Path, tmp_path: Path):
    copy = shutil.copytree(bundle, tmp_path / "other name.pt")
    assert inspect(copy)["fingerprint"] == inspect(bundle)["fingerprint"]


def test_a_bf16_bundle_is_run_in_rounded_fp32(inspect: Inspect, bundle_copy: Path, bundle: Path):
    """An HSTU's prefill has products that ONNX Runtime can't compute in bf16 on a CPU."""
    dataclasses.replace(open_bundle(bundle_copy), precision="bf16").write(bundle_copy)
    prefill = open_subject(bundle_copy).prefill
    with prefill:
        assert prefill.metadata().runtime == "onnxruntime, rounded to bf16"
    assert inspect(bundle_copy) == inspect(bundle)  # this prefill has none to round


def test_doctor(cli):
    result = cli("doctor")
    assert result.code == 0
    data = cli("doctor", "--json")
    assert data.code == 0
    findings = {f["name"]: f for f in json.loads(data.out)["findings"]}
    assert findings["torch"]["status"] == "ok"
    for name, finding in findings.items():
        assert name.split()[0] in result.out
        assert finding["status"] in ("ok", "missing", "limited")
        assert finding["how"] or finding["status"] == "ok"

"""A bundle with an item table: what it holds, and that another number in it is noticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.draw import PLAIN, draw_state, make_spec
from ckv_testing.exports import one_thread

from ckv_export.cache.item_table import FILE_NAME, load_item_table, row_bytes, save_item_table
from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.checkpoint.native import save_native
from ckv_export.contract import EventForm, FeatureSpec, ModelSpec
from ckv_export.deploy.bundle import Exported, ExportRequest, export_bundle
from ckv_export.deploy.inspect import ItemTableCost, open_subject, report_on
from ckv_export.deploy.item_table import build_item_table, require_item_model
from ckv_export.deploy.prepare import FormRequest, prepare
from ckv_export.errors import BundleError
from ckv_export.manifest import ItemTable, open_bundle
from ckv_export.model.fingerprint import Fingerprints, lookup_fingerprint
from ckv_export.parity.bundle import CASES_FILE, judge_onnxruntime, recorded_cases
from ckv_export.parity.expected import load
from ckv_export.parity.inputs import generate
from ckv_export.runtimes.base import Array
from ckv_export.stages import Stages

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS = 30
KEYS = ("item_k_index", "item_v_index", "item_k_user", "item_v_user", "item_long_key")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An ETA of three item features, exported with an item table; its file lacks some items."""
    folder = tmp_path_factory.mktemp("item_table")
    image = FeatureSpec("image", "item", "vector", 3, length=4, projected=True)
    user = FeatureSpec("age", "user", "categorical", 3, vocab_size=6)
    spec = make_spec("eta", features=(user, *PLAIN, image))
    rng = np.random.default_rng(7)
    save_native(folder / "shop.pt", spec, draw_state(spec, rng))
    known = rng.permutation(ITEMS)[:25]
    np.savez(
        folder / "items.npz",
        item_id=known,
        cate_id=rng.integers(1, 5, 25),
        image=rng.integers(-2, 3, (25, 4)) / 2,
    )
    request = ExportRequest(
        model=folder / "shop.pt",
        out=folder / "bundles",
        seed=11,
        form=FormRequest(item_features=folder / "items.npz", item_table=True, item_ids="ids of 26"),
    )
    with one_thread():
        return export_bundle(request, Stages(), None)  # type: ignore[arg-type]  # no engines


def test_bundle_holds_table_and_third_graph(bundle: Exported):
    manifest = open_bundle(bundle.folder)
    assert manifest.item_table == ItemTable(items=ITEMS, key_width=6, key_dtype="bool")
    assert manifest.form == EventForm("inline", "item_id")
    assert manifest.graph_names == ("prefill", "decode", "decode_items")
    assert {FILE_NAME, "decode_items.onnx"} <= set(manifest.files)
    items = manifest.profile.axes["I"]
    assert (items.min, items.opt, items.max) == (ITEMS, ITEMS, ITEMS)
    inputs = [t.name for t in manifest.graph("decode_items").inputs]
    assert inputs == [
        *KEYS,
        "history_mask",
        "history_item_id",
        "append_item_id",
        "append_mask",
        "candidate_item_id",
        "user_age",
    ]
    judged = {r.case for r in bundle.parity.outcomes[-1].results}
    assert sum(name.endswith(", by item table") for name in judged) == bundle.parity.cases


def test_table_of_the_bundle_is_the_models(bundle: Exported):
    checkpoint = load_checkpoint(bundle.folder.parent.parent / "shop.pt")
    form = FormRequest(item_features=bundle.folder.parent.parent / "items.npz", item_table=True)
    prepared = prepare(checkpoint, form)
    assert [g.io.name for g in prepared.graphs] == ["prefill", "decode", "decode_items"]
    built = build_item_table(require_item_model(prepared.model), ITEMS)
    stored = load_item_table(bundle.folder)
    assert set(stored) == set(built) == set(KEYS)
    for name, array in built.items():
        np.testing.assert_allclose(stored[name], array, rtol=1e-6, atol=1e-7)
    looked_up = lookup_fingerprint(prepared.looked_up)
    prints = Fingerprints.of(checkpoint.spec, checkpoint.state, looked_up)
    assert bundle.manifest.fingerprints["looked up"] == looked_up != ""
    assert bundle.manifest.fingerprints["entries"] == prints.entries
    named = hashlib.sha256(b"ids ids of 26").hexdigest()
    assert bundle.manifest.fingerprints["ids"] == named
    assert bundle.manifest.source["item_ids"] == "ids of 26"
    drawn = generate(checkpoint.spec, 11, prepared.catalogue)
    for case, recorded in zip(drawn, load(bundle.folder / CASES_FILE), strict=True):
        given = (c.inputs["candidate_item_id"] for c in (case, recorded.case))
        np.testing.assert_array_equal(*given)
    known = np.load(bundle.folder.parent.parent / "items.npz")["item_id"]
    assert prepared.catalogue.known == len(known) == 25
    missing, padding = bundle.manifest.notes
    assert missing.startswith("the item features are of 25 ids of 'item_id' and not of 5 others")
    assert 0 in known
    assert padding.startswith("item_id 0 is padding")


def test_published_bundle_passes_again(bundle: Exported):
    manifest = open_bundle(bundle.folder)
    cases = recorded_cases(bundle.folder, manifest)
    table = load_item_table(bundle.folder)
    outcome = judge_onnxruntime(bundle.folder, manifest, cases, table)
    assert outcome.passed
    assert manifest.parity["seed"] == 11
    by_table = [r for r in outcome.results if r.case.endswith(", by item table")]
    assert len(by_table) == len(cases) > 10


def item_of_a_window(folder: Path, spec: ModelSpec) -> int:
    """An item that a recorded case appends: it is in the short window of its scores."""
    case = next(c.case for c in load(folder / CASES_FILE) if c.case.name == "long, all real")
    assert case.inputs["append_mask"].all()
    return int(case.inputs["append_item_id"][0, -1])


def corrupted(name: str, values: Array, item: int) -> Array:
    values = values.copy()
    if name.endswith("_index"):
        values[item] = (values[item] + 1) % 10
    elif name == "item_long_key":
        # Another search than the model's: one code may well not change what is found.
        values = ~values
    else:
        values[item] = values[item] + np.float32(1.0)
    return values


@pytest.mark.parametrize("name", KEYS)
def test_another_number_in_the_table_fails_the_gate(bundle: Exported, name: str, tmp_path: Path):
    manifest = open_bundle(bundle.folder)
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in bundle.folder.iterdir():
        (folder / file.name).symlink_to(file)
    table = load_item_table(bundle.folder)
    item = item_of_a_window(folder, manifest.model)
    (folder / FILE_NAME).unlink()
    save_item_table(folder, table | {name: corrupted(name, table[name], item)})
    cases = recorded_cases(folder, manifest)
    outcome = judge_onnxruntime(folder, manifest, cases, load_item_table(folder))
    assert not outcome.passed
    failure = outcome.first_failure
    assert failure.tensor == "score"
    assert failure.case.endswith(", by item table")
    # Whoever opens the bundle learns of it without running anything.
    with pytest.raises(BundleError, match=rf"{FILE_NAME} is not the file that was exported"):
        open_bundle(folder)


@pytest.mark.parametrize("events", ["generated", "file"])
def test_inspect_reports_the_bundle_and_what_the_table_costs(
    bundle: Exported, events: str, tmp_path: Path, rng: np.random.Generator
):
    subject = open_subject(bundle.folder)
    # 2 row numbers and 2 and 1 numbers of the user parts of 4 bytes each, a code of 6 bits
    assert subject.item_table == ItemTableCost(ITEMS, 4 * (2 + 2 + 1) + 6)
    assert subject.item_table.to_dict()["bytes"] == ITEMS * 26
    assert row_bytes(manifest_layout(bundle)) == 26
    assert open_subject(bundle.folder.parent.parent / "shop.pt").item_table == subject.item_table
    path = None
    if events == "file":
        path = tmp_path / "events.npz"
        ids = rng.integers(1, ITEMS, (20, 8))
        np.savez(path, event_item_id=ids, event_mask=np.ones((20, 8), bool))
    report = report_on(subject, path, seed=3, user_dtype="fp16", users=None)
    assert len(report.spectrum) == 2
    assert all(np.isfinite(s.singular_values).all() for s in report.spectrum)
    if path is None:
        assert report.occupancy is None
    else:
        assert [o.events for o in report.occupancy] == [160, 160]
    json.dumps(report.to_dict())


def manifest_layout(bundle: Exported) -> list:
    io = bundle.manifest.graph("decode_items")
    return [t for t in io.inputs if t.name in KEYS]

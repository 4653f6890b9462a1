"""Graphs and bundles that take embeddings or ids for an event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ckv_testing.draw import PLAIN, RICH, draw_state, make_spec
from ckv_testing.exports import one_thread
from ckv_testing.forms import BY_ID, EXTERNAL, HSTU, SIM

from ckv_export.catalogue import Catalogue
from ckv_export.checkpoint.load import Checkpoint
from ckv_export.checkpoint.native import save_native
from ckv_export.contract import ModelSpec
from ckv_export.deploy.bundle import Exported, ExportRequest, export_bundle
from ckv_export.deploy.fidelity import FidelityRequest, check_fidelity
from ckv_export.deploy.inspect import open_subject, report_on
from ckv_export.deploy.prepare import FormRequest, Prepared, prepare
from ckv_export.errors import InputError, SpecError
from ckv_export.manifest import open_bundle
from ckv_export.model.registry import build_reference
from ckv_export.parity.bundle import CASES_FILE, judge_onnxruntime, recorded_cases
from ckv_export.parity.expected import ExpectedCase, load, record
from ckv_export.parity.gate import judge, require_pass
from ckv_export.parity.inputs import generate
from ckv_export.parity.report import ParityReport
from ckv_export.runtimes.torch import TorchRunner
from ckv_export.stages import Stages
from ckv_export.training import initial_state

pytestmark = pytest.mark.usefixtures("one_thread")


# -- from a checkpoint and wishes to graphs


def hstu_state(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """Biases that are no zeros, and pools that aren't small.

    A norm divides by the spread of what attention returns. Before any training that is next to
    nothing, and rounding grows a thousandfold.
    """
    drawn = torch.Generator().manual_seed(3)
    state = initial_state(spec, 3)
    for name, tensor in state.items():
        if name.endswith("_bias"):
            state[name] = torch.randn(11, generator=drawn) / 2
        elif name.endswith(".pool"):
            state[name] = 10 * tensor
    return state


def checkpoint(spec: ModelSpec, rng: np.random.Generator) -> Checkpoint:
    state = hstu_state(spec) if spec.kind == "hstu" else draw_state(spec, rng)
    return Checkpoint(spec, state, "model", "native", (), ())


def judged(prepared: Prepared, seed: int) -> int:
    """Judge the split model as the gate does; how many comparisons that were."""
    spec = prepared.checkpoint.spec
    reference = build_reference(spec, prepared.checkpoint.state)
    cases = record(reference, generate(spec, seed, prepared.catalogue), prepared.form)
    clear = [case for case in cases if spec.kind != "hstu" or no_close_call(case)]
    assert len(clear) > len(cases) / 2
    prefill, decode = (TorchRunner(g, g.io) for g in prepared.graphs[:2])
    outcome = judge(spec, prefill, decode, clear)
    require_pass(outcome)
    return len(outcome.results)


def no_close_call(case: ExpectedCase) -> bool:
    """Whether rounding flips no row: after one all later layers are another's.

    Padding ties all rows, exactly and in every runtime.
    """
    return all(((m == 0) | (m > 1e-5)).all() for m in case.margins.values())


@pytest.mark.parametrize("spec", [SIM, HSTU], ids=["sim", "hstu"])
def test_external_graphs_pass_the_gate(spec: ModelSpec, seed: int, rng: np.random.Generator):
    prepared = prepare(checkpoint(spec, rng), FormRequest(embeddings="external"))
    assert (prepared.form, prepared.catalogue) == (EXTERNAL, None)
    assert [g.io.name for g in prepared.graphs] == ["prefill", "decode"]
    names = [name for name, _ in prepared.model.named_parameters()]
    assert not any("table" in name or "events" in name for name in names)
    assert judged(prepared, seed) > 50


def save_items(path: Path, rng: np.random.Generator) -> Path:
    """Half of the items, in no order; the other half has no category and no tags."""
    np.savez(
        path,
        item_id=rng.permutation(30)[:15],
        cate_id=rng.integers(1, 5, 15),
        tags=rng.integers(0, 9, (15, 2)),
    )
    return path


@pytest.mark.parametrize("spec", [SIM, HSTU], ids=["sim", "hstu"])
def test_graphs_of_ids_pass_the_gate(
    spec: ModelSpec, tmp_path: Path, seed: int, rng: np.random.Generator
):
    path = save_items(tmp_path / "items.npz", rng)
    prepared = prepare(checkpoint(spec, rng), FormRequest(item_features=path, item_key="item_id"))
    assert prepared.form == BY_ID
    assert isinstance(prepared.catalogue, Catalogue)
    assert prepared.catalogue.known == 15
    assert len(prepared.graphs) == 2
    assert judged(prepared, seed) > 50


@pytest.mark.parametrize("ids", [range(30), range(1, 30)])
@pytest.mark.parametrize("spec", [SIM, HSTU], ids=["sim", "hstu"])
def test_features_of_padding_are_told_where_scores_depend_on_them(
    spec: ModelSpec, ids: range, tmp_path: Path, rng: np.random.Generator
):
    path, known = tmp_path / "items.npz", len(ids)
    np.savez(path, item_id=ids, cate_id=np.ones(known, int), tags=np.zeros((known, 2), int))
    wishes = FormRequest(item_features=path, item_key="item_id")
    prepared = prepare(checkpoint(spec, rng), wishes)
    told = [note for note in prepared.notes if "item_id 0 is padding" in note]
    assert len(told) == (spec is SIM and 0 in ids)
    assert all("(cate_id)" in note for note in told)


def test_the_first_id_is_the_key_unless_told(tmp_path: Path, rng: np.random.Generator):
    path = tmp_path / "categories.npz"
    np.savez(path, cate_id=np.arange(1, 5), item_id=np.arange(4), tags=np.zeros((4, 2), int))
    prepared = prepare(checkpoint(SIM, rng), FormRequest(item_features=path))
    assert prepared.form.item_key == "cate_id"
    assert prepared.notes == (), "padding has no features: nothing is missing"
    with pytest.raises(SpecError, match=r"item key must be one of cate_id, item_id, got 'tags'"):
        prepare(checkpoint(SIM, rng), FormRequest(item_features=path, item_key="tags"))


def test_a_key_by_which_nothing_is_looked_up_is_refused(rng: np.random.Generator):
    with pytest.raises(SpecError, match=r"--item-key .* give --item-features, --item-table or"):
        prepare(checkpoint(SIM, rng), FormRequest(item_key="item_id"))


def test_ids_without_a_table_are_not_all_that_is_kept(rng: np.random.Generator):
    with pytest.raises(SpecError, match=r"--item-ids .* without --item-table: give that too"):
        prepare(checkpoint(SIM, rng), FormRequest(item_ids="ours"))


def test_external_and_a_file_of_features_exclude_each_other(
    tmp_path: Path, rng: np.random.Generator
):
    path = save_items(tmp_path / "items.npz", rng)
    wishes = FormRequest(embeddings="external", item_features=path, item_key="item_id")
    with pytest.raises(SpecError, match="exclude each other"):
        prepare(checkpoint(SIM, rng), wishes)


# -- a bundle of external embeddings


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A SIM with all of its features looked up elsewhere."""
    folder = tmp_path_factory.mktemp("external")
    spec = make_spec("sim", features=(RICH[0], *PLAIN))
    save_native(folder / "model.pt", spec, draw_state(spec, np.random.default_rng(5)))
    request = ExportRequest(
        model=folder / "model.pt",
        out=folder / "bundles",
        seed=5,
        form=FormRequest(embeddings="external"),
    )
    with one_thread():
        return export_bundle(request, Stages(), None)  # type: ignore[arg-type]  # no engines


def test_external_bundle_says_so_and_has_no_tables(bundle: Exported):
    manifest = open_bundle(bundle.folder)
    assert manifest.form == EXTERNAL
    assert (manifest.item_table, manifest.graph_names) == (None, ("prefill", "decode"))
    data = json.loads((bundle.folder / "manifest.json").read_text())
    names = {name: [t["name"] for t in g["inputs"]] for name, g in data["graphs"].items()}
    assert names["prefill"] == ["event_embedding", "event_mask"]
    assert names["decode"][-2:] == ["candidate_embedding", "user_embedding"]
    cases = load(bundle.folder / CASES_FILE)
    assert {n for c in cases for n in c.case.inputs} == {
        "history_embedding",
        "append_embedding",
        "candidate_embedding",
        "user_embedding",
        "history_mask",
        "append_mask",
    }


def test_external_bundle_passes_again(bundle: Exported):
    manifest = open_bundle(bundle.folder)
    cases = recorded_cases(bundle.folder, manifest)
    outcome = judge_onnxruntime(bundle.folder, manifest, cases, None)
    assert outcome.passed
    assert len(cases) == bundle.parity.cases > 10
    assert outcome.runtime.runtime == "onnxruntime"


def test_external_bundle_fails_on_other_answers(bundle: Exported, tmp_path: Path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in bundle.folder.iterdir():
        if file.name != CASES_FILE:
            (folder / file.name).symlink_to(file)
    with np.load(bundle.folder / CASES_FILE) as file:
        arrays = {name: file[name] for name in file.files}
    name = next(n for n in arrays if n.endswith("/out/score") and arrays[n].size > 8)
    arrays[name][0, -1] += np.float32(1e-4)
    np.savez(folder / CASES_FILE, **arrays)
    manifest = open_bundle(bundle.folder)
    outcome = judge_onnxruntime(folder, manifest, recorded_cases(folder, manifest), None)
    assert not outcome.passed
    assert [r.tensor for r in outcome.results if not r.passed] == ["score"]


def test_real_events_are_features_to_the_reference(
    bundle: Exported, tmp_path: Path, rng: np.random.Generator
):
    """The external bundle is given their embeddings, as it is in every step."""
    items, users = {"item_id": 30, "cate_id": 5}, rng.integers(0, 11, 20)
    drawn = {
        f"{prefix}_{name}": rng.integers(1, rows, (20, length))
        for prefix, length in (("event", 12), ("candidate", 4))
        for name, rows in items.items()
    }
    events, labels = tmp_path / "events.npz", tmp_path / "labels.npz"
    np.savez(events, event_mask=np.ones((20, 12), bool), user_user_id=users, **drawn)
    np.savez(labels, label=rng.integers(0, 2, (20, 4)))
    model = bundle.folder.parent.parent / "model.pt"

    def check(**wishes: Any) -> ParityReport:
        return check_fidelity(FidelityRequest(bundle.folder, checkpoint=model, **wishes), Stages())

    found = {}
    for seed in (None, 0):
        report = check(events=events, labels=labels, users=3, seed=seed, steps=2)
        assert report.passed
        assert report.seed == (5 if seed is None else seed)
        assert [o.name for o in report.outcomes] == ["pytorch", "onnxruntime-cpu"]
        assert {steps.truth for steps in report.steps.values()} == {report.truth}
        cases = [run.case.case for run in report.outcomes[0].runs]
        assert all(case.labels is not None for case in cases)
        found[seed] = np.concatenate([case.inputs["candidate_embedding"].ravel() for case in cases])
        assert len(found[seed]) == 3 * 4 * 10
    assert (found[None] != found[0]).any(), "other users"
    with pytest.raises(InputError, match="--seed is for graphs that take a tensor per feature"):
        check(seed=0)


@pytest.mark.parametrize("events", ["generated", "file"])
def test_inspect_reports_the_external_bundle(
    bundle: Exported, events: str, tmp_path: Path, rng: np.random.Generator
):
    path = None
    if events == "file":
        path = tmp_path / "events.npz"
        np.savez(
            path,
            event_embedding=rng.standard_normal((20, 8, 10)),
            event_mask=rng.permutation(160).reshape(20, 8) < 100,
        )
    subject = open_subject(bundle.folder)
    assert (subject.form, subject.item_table) == (EXTERNAL, None)
    report = report_on(subject, path, seed=3, user_dtype="fp16", users=None)
    assert [s.side for s in report.spectrum] == ["k", "v"]
    assert all(s.events > 0 and s.singular_values[0] > 0 for s in report.spectrum)
    if path is None:
        assert report.occupancy is None
    else:
        assert [o.events for o in report.occupancy] == [100, 100]
    json.dumps(report.to_dict())

"""Fidelity of bundles whose graphs take something else than a tensor per feature."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ckv_testing.bundles import manifest_of
from ckv_testing.draw import draw_state, make_spec
from ckv_testing.exports import Export
from ckv_testing.runs import Tampered

from ckv_export.cache.item_table import FILE_NAME as ITEM_TABLE_FILE
from ckv_export.cache.item_table import save_item_table
from ckv_export.checkpoint.native import save_native
from ckv_export.contract import EventForm, Profile
from ckv_export.deploy import fidelity
from ckv_export.deploy.bundle import ExportRequest, export_bundle
from ckv_export.deploy.fidelity import FidelityRequest, check_fidelity
from ckv_export.deploy.item_table import build_item_table, require_item_model
from ckv_export.deploy.prepare import FormRequest
from ckv_export.errors import CkvError, EngineError, InputError, MissingDependency
from ckv_export.manifest import ItemTable, open_bundle, read_manifest
from ckv_export.model.events import EventEmbedding
from ckv_export.model.registry import build_model
from ckv_export.parity.lineup import Contender, Lineup, line_up, onnxruntime_runners
from ckv_export.runtimes.base import Arrays, Runner
from ckv_export.stages import Stages

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = make_spec("sim", max_len=12, topk=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_native(path, SPEC, draw_state(SPEC, np.random.default_rng(5)))
    return path


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs that look the category up, and an item table."""
    folder = tmp_path_factory.mktemp("bundle")
    np.savez(folder / "items.npz", item_id=np.arange(30), cate_id=np.arange(30) % 5)
    form = FormRequest(item_features=folder / "items.npz", item_table=True)
    request = ExportRequest(model=model, out=folder / "out", name="ids", form=form)
    return export_bundle(request, Stages(), lambda: pytest.fail("nothing is built")).folder


def check(bundle: Path, **wishes):
    return check_fidelity(FidelityRequest(bundle, **wishes), Stages())


@pytest.mark.slow
def test_what_the_checkpoint_does_not_hold(bundle: Path, model: Path):
    """PyTorch can't run such graphs; ONNX Runtime can, and steps are recomputed by the graphs."""
    report = check(bundle, checkpoint=model, steps=3)
    assert report.passed
    assert [o.name for o in report.outcomes] == ["onnxruntime-cpu"]
    assert "look item features up" in report.not_run["pytorch"]
    assert "tensorrt" in report.not_run
    steps = report.steps["onnxruntime-cpu"]
    assert str(bundle) in steps.truth
    assert max(step.score.max for step in steps.steps) < 2e-6
    tables = [r for r in report.outcomes[0].results if r.case.endswith("by item table")]
    assert len(tables) == report.cases


@pytest.mark.slow
def test_real_events_of_ids(bundle: Path, model: Path, tmp_path: Path, rng: np.random.Generator):
    ids = rng.integers(0, 30, (20, 12)).astype(np.int32)
    np.savez(tmp_path / "events.npz", event_item_id=ids, event_mask=ids > 0)
    events = tmp_path / "events.npz"
    report = check(bundle, against=bundle, events=events, users=10, seed=3)
    assert report.passed
    assert report.seed == 3
    assert sum(run.case.outputs["score"].shape[0] for run in report.outcomes[0].runs) == 10
    with pytest.raises(InputError, match="by --against alone"):
        check(bundle, checkpoint=model, events=events)
    with pytest.raises(InputError, match="--seed is for graphs"):
        check(bundle, checkpoint=model, seed=1)
    with pytest.raises(InputError, match="only recorded ones have answers"):
        check(bundle, seed=1)


def test_other_item_features_are_believed_by_nobody(bundle: Path, tmp_path: Path):
    other, manifest = shutil.copytree(bundle, tmp_path / "other"), read_manifest(bundle)
    prints = dict(manifest.fingerprints) | {"looked up": "0" * 64}
    source = dict(manifest.source) | {"item_features": "new.parquet"}
    dataclasses.replace(manifest, fingerprints=prints, source=source).write(other)
    says = r"other look up .* of new\.parquet, those of .* others, of items\.npz: export both"
    with pytest.raises(InputError, match=says):
        check(bundle, against=other)


def join_in(
    monkeypatch: pytest.MonkeyPatch,
    runners: Callable[[], list[Runner]],
    profiles: tuple[tuple[Profile, ...], ...] = (),
) -> None:
    """Let an engine be in every line-up."""

    def with_an_engine(*given: Any) -> Lineup:
        found = line_up(*given)
        contenders = (*found.contenders, Contender("tensorrt sm89", runners, profiles))
        return Lineup(contenders, {n: w for n, w in found.not_run.items() if n != "tensorrt"})

    monkeypatch.setattr(fidelity, "line_up", with_an_engine)


@pytest.mark.parametrize(
    "error", [EngineError("of another GPU"), MissingDependency("tensorrt", "engines", "tensorrt")]
)
def test_a_runtime_that_turns_out_not_to_run(
    error: CkvError, bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its steps are left out; asked for by name, it is refused."""

    def runners() -> list[Runner]:
        raise error

    join_in(monkeypatch, runners)
    report = check(bundle, steps=2)
    assert report.not_run["tensorrt sm89"] == str(error)
    assert list(report.steps) == ["onnxruntime-cpu"]
    with pytest.raises(InputError, match=re.escape(f"tensorrt sm89 can't run here: {error}")):
        check(bundle, runtimes=("tensorrt",))


def test_a_runtime_whose_outputs_can_not_be_fed_back(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Its steps are left out, and its failure is reported as any other."""

    def shorten(arrays: Arrays) -> None:
        arrays["cache_k_user"] = arrays["cache_k_user"][:, :, 1:]

    def runners() -> list[Runner]:
        prefill, *others = onnxruntime_runners(bundle, open_bundle(bundle))
        return [Tampered(prefill, outputs=shorten), *others]

    join_in(monkeypatch, runners)
    report = check(bundle, steps=2, localize=True)
    assert [o.passed for o in report.outcomes] == [True, False]
    assert list(report.steps) == ["onnxruntime-cpu"]
    told = report.localized["tensorrt sm89"]
    assert "no tensor differs" in told
    assert "or tensorrt sm89 runs it wrongly" in told, "ONNX Runtime has passed with that file"


def test_steps_beyond_an_engines_profile_are_left_out(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    """They are cut from the longest case, which an engine for shorter ones isn't judged by."""

    def runners() -> list[Runner]:
        prefill, *others = onnxruntime_runners(bundle, open_bundle(bundle))
        return [Tampered(prefill, feeds=refuse_long), *others]

    def refuse_long(feeds: Arrays) -> None:
        if feeds["event_mask"].shape[1] > 5:
            raise EngineError("beyond the profile")

    join_in(monkeypatch, runners, ((Profile.from_dict({"S": "0:4:5"}),),))
    report = check(bundle, steps=2)
    assert report.passed
    assert len(report.outcomes) == 2
    assert list(report.steps) == ["onnxruntime-cpu"]


def test_a_twin_without_the_table_has_no_graph_to_compare_with(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is believed all the same, and where scores by the table are wrong, that is said."""
    twin = shutil.copytree(bundle, tmp_path / "twin")
    for name in ("decode_items.onnx", ITEM_TABLE_FILE):
        (twin / name).unlink()
    dataclasses.replace(open_bundle(bundle), item_table=None).with_files(twin).write(twin)

    def shift(arrays: Arrays) -> None:
        arrays["score"] += np.float32(0.01)

    def runners() -> list[Runner]:
        *others, by_items = onnxruntime_runners(bundle, open_bundle(bundle))
        return [*others, Tampered(by_items, outputs=shift)]

    join_in(monkeypatch, runners)
    report = check(bundle, against=twin, localize=True)
    assert [o.passed for o in report.outcomes] == [True, False]
    told = report.localized["tensorrt sm89"]
    assert told == f"decode_items: {twin} was exported without such a graph to compare with"


@pytest.mark.parametrize("table", [False, True], ids=["features of a file", "item table"])
def test_items_that_are_ids_alone(table: bool, tmp_path: Path):
    """There is nothing to look up: the checkpoint is all that PyTorch needs."""
    spec = make_spec("sim", features=SPEC.features[:1])
    state = draw_state(spec, np.random.default_rng(5))
    save_native(tmp_path / "model.pt", spec, state)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    form, layout = EventForm(item_key="item_id"), None
    if table:
        events = EventEmbedding(spec, state, form)
        model = require_item_model(build_model(spec, state, events))
        save_item_table(bundle, build_item_table(model, 30))
        layout = ItemTable(30, *model.key_layout())
    made = manifest_of(Export(spec, state, bundle, [], 0))
    manifest = dataclasses.replace(made, form=form, item_table=layout)
    for graph in manifest.graph_names:
        (bundle / f"{graph}.onnx").touch()
    manifest.with_files(bundle).write(bundle)
    report = check(bundle, runtimes=("pytorch",), checkpoint=tmp_path / "model.pt", seed=2)
    assert report.passed
    cases = {r.case for r in report.outcomes[0].results}
    assert len(cases) == report.cases * (2 if table else 1)

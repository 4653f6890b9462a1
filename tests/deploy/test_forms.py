"""What graphs take for an event, and bundles of either form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ckv_testing.draw import DNN, PLAIN, RICH, draw_state, make_spec

from ckv_export.catalogue import Catalogue
from ckv_export.checkpoint.load import Checkpoint
from ckv_export.checkpoint.native import save_native
from ckv_export.contract import (
    AttentionSpec,
    EventForm,
    FeatureSpec,
    GraphSpec,
    ModelSpec,
    decode_io,
    decode_items_io,
    item_table_tensors,
    prefill_io,
)
from ckv_export.deploy.bundle import Exported, ExportRequest, export_bundle
from ckv_export.deploy.inspect import open_subject, report_on
from ckv_export.deploy.prepare import FormRequest, Prepared, prepare
from ckv_export.errors import SpecError
from ckv_export.events import event_tensors
from ckv_export.manifest import open_bundle
from ckv_export.model.registry import build_reference
from ckv_export.parity.bundle import CASES_FILE, judge_onnxruntime, recorded_cases
from ckv_export.parity.expected import ExpectedCase, load, record
from ckv_export.parity.gate import judge, require_pass
from ckv_export.parity.inputs import generate
from ckv_export.runtimes.torch import TorchRunner
from ckv_export.stages import Stages
from ckv_export.training import initial_state

pytestmark = pytest.mark.usefixtures("one_thread")

EXTERNAL = EventForm("external")
BY_ID = EventForm(item_key="item_id")
TIME = FeatureSpec("time", "item", "timestamp", 0)

ITEM = (
    FeatureSpec("cate_id", "item", "categorical", 4, vocab_size=5),
    FeatureSpec("item_id", "item", "categorical", 6, vocab_size=30),
    # Means of two are exact: no search may depend on how they were rounded.
    FeatureSpec("tags", "item", "sequence", 2, vocab_size=9, length=2),
)
USER = (
    FeatureSpec("age", "user", "numeric", 2),
    FeatureSpec("face", "user", "vector", 3, length=7, projected=True),
)
ATTENTION = AttentionSpec(8, 2, 2, 1, 10, 7)
SIM = make_spec("sim", features=(*ITEM, *USER), attention=ATTENTION)
WIDE = AttentionSpec(32, 2, 2, 1, 10, 7)
HSTU = ModelSpec("hstu", (*ITEM, TIME, *USER), WIDE, DNN, 20, num_layers=2)


def written(graph: GraphSpec) -> list[str]:
    """Inputs and outputs as ``name dtype axes``; those of the cache left to tests of the cache."""
    cache = ("cache_", "past_k", "past_v", "append_k", "append_v", "item_k", "item_v")
    return [
        f"{t.name} {t.dtype} {' '.join(str(a) for a in t.axes)}"
        for t in graph.tensors()
        if not t.name.startswith(cache)
    ]


# -- the contract


def test_graphs_of_external_embeddings():
    assert written(prefill_io(SIM, EXTERNAL)) == [
        "event_embedding float32 B S 12",
        "event_mask bool B S",
    ]
    assert written(decode_io(SIM, EXTERNAL)) == [
        "history_mask bool B S",
        "history_embedding float32 B S 12",
        "append_embedding float32 B T 12",
        "append_mask bool B T",
        "candidate_embedding float32 B C 12",
        "user_embedding float32 B 5",
        "score float32 B C",
    ]


def test_graphs_of_external_embeddings_and_times():
    """Embeddings stand for what is embedded: of a past event only when it was is left."""
    assert written(prefill_io(HSTU, EXTERNAL)) == [
        "event_embedding float32 B S 12",
        "event_time int32 B S",
        "event_mask bool B S",
        "past_mask bool B K",
        "past_time int32 B K",
    ]
    assert written(decode_io(HSTU, EXTERNAL)) == [
        "history_mask bool B S",
        "history_time int32 B S",
        "append_embedding float32 B T 12",
        "append_time int32 B T",
        "append_mask bool B T",
        "candidate_embedding float32 B C 12",
        "candidate_time int32 B C",
        "user_embedding float32 B 5",
        "score float32 B C",
    ]


def test_graphs_of_ids_alone():
    assert written(prefill_io(SIM, BY_ID)) == ["event_item_id int32 B S", "event_mask bool B S"]
    request = [
        "history_mask bool B S",
        "history_item_id int32 B S",
        "append_item_id int32 B T",
        "append_mask bool B T",
        "candidate_item_id int32 B C",
        "user_age float32 B",
        "user_face float32 B 7",
        "score float32 B C",
    ]
    assert written(decode_io(SIM, BY_ID)) == request
    table = item_table_tensors(SIM, 8, "float32")
    by_items = decode_items_io(SIM, BY_ID, table)
    assert written(by_items) == ["item_long_key float32 I 8", *request]
    assert by_items.name == "decode_items"
    assert [t.name for t in by_items.outputs] == ["score"]
    assert [f"{t.name} {t.dtype} {t.axes}" for t in table] == [
        "item_k_index int32 ('I',)",
        "item_v_index int32 ('I',)",
        "item_k_user float32 ('I', 2)",
        "item_v_user float32 ('I', 1)",
        "item_long_key float32 ('I', 8)",
    ]


def test_graphs_of_ids_alone_and_times():
    """A time is no constant of an item: it is given beside the id."""
    assert written(prefill_io(HSTU, BY_ID)) == [
        "event_item_id int32 B S",
        "event_time int32 B S",
        "event_mask bool B S",
        "past_mask bool B K",
        "past_time int32 B K",
    ]
    assert written(decode_io(HSTU, BY_ID)) == [
        "history_mask bool B S",
        "history_time int32 B S",
        "append_item_id int32 B T",
        "append_time int32 B T",
        "append_mask bool B T",
        "candidate_item_id int32 B C",
        "candidate_time int32 B C",
        "user_age float32 B",
        "user_face float32 B 7",
        "score float32 B C",
    ]


@pytest.mark.parametrize("spec", [SIM, HSTU], ids=["sim", "hstu"])
@pytest.mark.parametrize("form", [EXTERNAL, BY_ID], ids=["external", "ids"])
def test_the_cache_is_the_same_whatever_events_look_like(spec: ModelSpec, form: EventForm):
    for io in (prefill_io, decode_io):
        inline, other = io(spec), io(spec, form)
        cache = ("cache_", "past_k", "past_v", "append_k", "append_v")
        for one, two in ((inline.inputs, other.inputs), (inline.outputs, other.outputs)):
            kept = [[t for t in side if t.name.startswith(cache)] for side in (one, two)]
            assert kept[0] == kept[1]
        assert any(t.name.startswith(cache) for t in inline.tensors())
        assert inline.outputs == other.outputs


def test_without_user_features_there_is_no_user_embedding():
    spec = make_spec("sim", features=ITEM)
    assert not any("user_embedding" in t.name for t in decode_io(spec, EXTERNAL).inputs)


def test_event_files_are_of_the_form_too():
    assert [t.name for t in event_tensors(HSTU, EXTERNAL)] == [
        "event_embedding",
        "event_time",
        "event_mask",
    ]
    assert [t.name for t in event_tensors(SIM, BY_ID)] == ["event_item_id", "event_mask"]


# -- refusals


def test_external_and_looked_up_exclude_each_other():
    with pytest.raises(SpecError) as caught:
        EventForm("external", "item_id")
    assert str(caught.value) == (
        "external embeddings and looked-up item features exclude each other: the graph takes "
        "embeddings or ids"
    )


def test_another_way_is_refused():
    with pytest.raises(SpecError) as caught:
        EventForm("extern")
    assert str(caught.value) == (
        "embeddings must be one of inline, external, got 'extern'; did you mean 'external'?"
    )


@pytest.mark.parametrize("role", ["item", "user"])
@pytest.mark.parametrize("name", ["mask", "embedding", "k_index", "v_index", "k_user", "v_user"])
def test_features_named_as_tensors_of_the_graphs_are_refused(name: str, role: str):
    with pytest.raises(SpecError) as caught:
        FeatureSpec(name, role, "categorical", 4, vocab_size=5)
    assert str(caught.value).startswith(f"a feature can't be called {name!r}: ")


@pytest.mark.parametrize("form", [EventForm(), EXTERNAL, BY_ID], ids=["inline", "external", "ids"])
@pytest.mark.parametrize("name", ["long_key", "score", "event", "mask_k", "item_id"])
def test_no_other_name_makes_two_tensors_of_one_name(name: str, form: EventForm):
    named = [
        FeatureSpec(name, "item", "categorical", 4, vocab_size=5),
        FeatureSpec(f"{name}s", "user", "categorical", 2, vocab_size=5),
    ]
    features = (*(f for f in ITEM if f.name != name), *named)
    sim = make_spec("sim", features=features, attention=ATTENTION)
    hstu = ModelSpec("hstu", (*features, TIME), WIDE, DNN, 20, num_layers=2)
    graphs = [io(spec, form) for spec in (sim, hstu) for io in (prefill_io, decode_io)]
    graphs.append(decode_items_io(sim, form, item_table_tensors(sim, 8, "float32")))
    for graph in graphs:
        names = [t.name for t in graph.tensors()]
        assert len(set(names)) == len(names), graph.name


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


def test_the_first_id_is_the_key_unless_told(tmp_path: Path, rng: np.random.Generator):
    path = tmp_path / "categories.npz"
    np.savez(path, cate_id=np.arange(5), item_id=np.arange(5), tags=np.zeros((5, 2), int))
    prepared = prepare(checkpoint(SIM, rng), FormRequest(item_features=path))
    assert prepared.form.item_key == "cate_id"
    with pytest.raises(SpecError, match=r"item key must be one of cate_id, item_id, got 'tags'"):
        prepare(checkpoint(SIM, rng), FormRequest(item_features=path, item_key="tags"))


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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    exported = export_bundle(request, Stages(), None)  # type: ignore[arg-type]  # no engines
    torch.set_num_threads(threads)
    return exported


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

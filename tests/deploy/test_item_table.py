"""The item table: built as the models encode, enough for their scores, judged with the bundle."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from ckv_testing.draw import DNN, KINDS, PLAIN, VARIANTS, draw_state, exact, make_spec
from torch import Tensor

from ckv_export.cache.item_table import FILE_NAME, load_item_table, row_bytes, save_item_table
from ckv_export.catalogue import Catalogue
from ckv_export.checkpoint.load import Checkpoint, load_checkpoint
from ckv_export.checkpoint.native import save_native
from ckv_export.contract import AttentionSpec, EventForm, FeatureSpec, ModelSpec
from ckv_export.deploy.bundle import Exported, ExportRequest, export_bundle
from ckv_export.deploy.inspect import ItemTableCost, open_subject, report_on
from ckv_export.deploy.item_table import build_item_table, items_of, layout, require_item_model
from ckv_export.deploy.prepare import FormRequest, prepare
from ckv_export.errors import BundleError, ParityFailure, SpecError
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.decode_items import DecodeItemsGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.manifest import ItemTable, open_bundle
from ckv_export.model.events import EventEmbedding
from ckv_export.model.reference import Reference
from ckv_export.model.registry import build_model
from ckv_export.model.target_attention import TargetAttentionModel
from ckv_export.parity.bundle import CASES_FILE, judge_onnxruntime, recorded_cases
from ckv_export.parity.expected import ExpectedCase, load, record
from ckv_export.parity.gate import judge, judge_items, require_pass
from ckv_export.parity.inputs import Case, CaseSize, generate, generate_case
from ckv_export.parity.tolerances import TOLERANCES
from ckv_export.runtimes.base import Array, Arrays
from ckv_export.runtimes.torch import TorchRunner
from ckv_export.stages import Stages
from ckv_export.training import initial_state

pytestmark = pytest.mark.usefixtures("one_thread")

State = Mapping[str, Tensor]
SCORE = TOLERANCES["score"].absolute


@dataclasses.dataclass(frozen=True)
class Shop:
    """A drawn model that takes ids alone, with what is known of its items."""

    spec: ModelSpec
    state: State
    catalogue: Catalogue
    model: TargetAttentionModel

    @property
    def items(self) -> int:
        return items_of(self.spec, self.catalogue.key)

    def table(self) -> Arrays:
        return build_item_table(self.model, self.items)

    def every_item(self) -> dict[str, Tensor]:
        """The features of all items as one history [1, I, ...]."""
        ids = np.arange(self.items, dtype=np.int32)
        every = {self.catalogue.key: ids} | dict(self.catalogue.features)
        return {name: torch.from_numpy(np.ascontiguousarray(a[None])) for name, a in every.items()}

    def cases(self, seed: int) -> list[ExpectedCase]:
        """The gate's cases with exact numbers, and what the reference answers."""
        form = self.model.events.form
        drawn = [
            Case(case.name, {name: exact(a) for name, a in case.inputs.items()})
            for case in generate(self.spec, seed, self.catalogue)
        ]
        return record(Reference(self.spec, self.state), drawn, form)


def open_shop(spec: ModelSpec, key: str, rng: np.random.Generator) -> Shop:
    state = draw_state(spec, rng)
    items = items_of(spec, key)
    every = generate_case(spec, CaseSize("items", 1, items, 0, 1, "full"), rng).inputs
    names = [f.name for f in spec.embedded_item_features if f.name != key]
    features = {name: exact(every[f"history_{name}"])[0] for name in names}
    catalogue = Catalogue(key, features, items)
    looked_up = {name: torch.from_numpy(a) for name, a in features.items()}
    events = EventEmbedding(spec, state, EventForm(item_key=key), looked_up)
    return Shop(spec, state, catalogue, require_item_model(build_model(spec, state, events)))


def expected_key(shop: Shop, events: Tensor) -> Tensor:
    """What the long branch of each kind searches events [1, I, d_e] by, from its formula."""
    if shop.spec.kind in ("eta", "sdim"):
        return events @ shop.state["long.rotations"].flatten(1) > 0
    if shop.spec.d_event <= shop.spec.attention.d and (
        shop.spec.kind == "sim" or shop.spec.attention.num_heads == 1
    ):
        return events
    name = {"sim": "long.gsu_event.weight", "twin": "long.k.weight"}[shop.spec.kind]
    return events @ shop.state[name].T


# -- what is in it


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_what_model_and_reference_cache_of_the_items(
    kind: str, variant: str, rng: np.random.Generator
):
    shop = open_shop(make_spec(kind, variant), "item_id", rng)
    table, every = shop.table(), shop.every_item()
    sizes = {"I": shop.items}
    declared = {t.name: (t.dtype, t.shape(sizes)) for t in layout(shop.model)}
    assert {n: (a.dtype.name, a.shape) for n, a in table.items()} == declared

    reference = Reference(shop.spec, shop.state)
    mask = torch.ones(1, shop.items, dtype=torch.bool)
    [entries] = reference.cache(every, mask)
    plain = PrefillGraph(build_model(shop.spec, shop.state))
    given = {f"event_{n}": t.numpy() for n, t in every.items()} | {"event_mask": mask.numpy()}
    with TorchRunner(plain, plain.io) as runner:
        cache = runner.infer({t.name: given[t.name] for t in plain.io.inputs})
    for side in "kv":
        if shop.spec.attention.shared(side):
            rows = table[f"item_{side}_index"]
            np.testing.assert_array_equal(rows, entries.index[side][0])
            np.testing.assert_array_equal(rows, cache[f"cache_{side}_index"][0, 0])
        else:
            assert f"item_{side}_index" not in table
        for expected in (entries.user[side][0], cache[f"cache_{side}_user"][0, 0]):
            np.testing.assert_allclose(table[f"item_{side}_user"], expected, rtol=1e-5, atol=1e-6)

    key = expected_key(shop, reference.embed(shop.spec.embedded_item_features, every))[0]
    # Sums of multiples of 1/4 are exact: a float key has no rounding either.
    np.testing.assert_array_equal(table["item_long_key"], key)


@pytest.mark.parametrize("items", [1, 4095, 4096, 4097, 8193])
def test_any_number_of_items_is_encoded_to_the_last(items: int, rng: np.random.Generator):
    """Around the 4096 that are encoded at a time."""
    spec = make_spec("eta", features=(dataclasses.replace(PLAIN[0], vocab_size=items),))
    shop = open_shop(spec, "item_id", rng)
    table = shop.table()
    assert {len(a) for a in table.values()} == {items}
    events = shop.state["embedding.item_id.table"]
    np.testing.assert_array_equal(table["item_long_key"], expected_key(shop, events))
    [entries] = Reference(spec, shop.state).cache(
        shop.every_item(), torch.ones(1, items, dtype=torch.bool)
    )
    np.testing.assert_array_equal(table["item_k_index"], entries.index["k"][0])
    np.testing.assert_array_equal(table["item_v_index"], entries.index["v"][0])
    np.testing.assert_allclose(table["item_k_user"], entries.user["k"][0], rtol=1e-5, atol=1e-6)


# -- what it is good for


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_a_table_score_as_prefill_and_decode_do(
    kind: str, variant: str, seed: int, rng: np.random.Generator
):
    shop = open_shop(make_spec(kind, variant), "item_id", rng)
    cases, table = shop.cases(seed), shop.table()
    prefill, decode, by_items = (
        TorchRunner(graph, graph.io)
        for graph in (
            PrefillGraph(shop.model),
            DecodeGraph(shop.model),
            DecodeItemsGraph(shop.model),
        )
    )
    assert [t.name for t in by_items.io.outputs] == ["score"]
    require_pass(judge(shop.spec, prefill, decode, cases))
    require_pass(judge_items(by_items, table, cases))
    compared = served(shop, prefill, decode, by_items, table, cases)
    assert compared > len(cases)


def served(
    shop: Shop,
    prefill: TorchRunner,
    decode: TorchRunner,
    by_items: TorchRunner,
    table: Arrays,
    cases: list[ExpectedCase],
) -> int:
    """Compare the two ways of serving a request with each other; how many scores that were."""
    compared = 0
    with prefill, decode, by_items:
        for case in cases:
            inputs = case.case.inputs
            events = {n.replace("history_", "event_", 1): a for n, a in inputs.items()}
            cache = prefill.infer({t.name: events[t.name] for t in prefill.io.inputs})
            kept = case.case.cached - shop.spec.cached_events(case.case.cached)
            given = inputs | {n: a[:, :, kept:].copy() for n, a in cache.items()} | dict(table)
            expected = decode.infer({t.name: given[t.name] for t in decode.io.inputs})["score"]
            score = by_items.infer({t.name: given[t.name] for t in by_items.io.inputs})["score"]
            np.testing.assert_allclose(score, expected, rtol=0, atol=SCORE, err_msg=case.case.name)
            compared += score.size
    return compared


def test_scores_follow_the_table(seed: int, rng: np.random.Generator):
    """Each of its tensors is used: with other rows the gate sees other scores."""
    shop = open_shop(make_spec("sim"), "item_id", rng)
    graph, table, cases = DecodeItemsGraph(shop.model), shop.table(), shop.cases(seed)
    for name in table:
        other = table | {name: np.ascontiguousarray(np.roll(table[name], 1, axis=0))}
        outcome = judge_items(TorchRunner(graph, graph.io), other, cases)
        with pytest.raises(ParityFailure, match=r"^pytorch does not compute .*, by item table'"):
            require_pass(outcome)
        assert {r.tensor for r in outcome.results} == {"score"}


# -- refusals


def hstu(features: tuple[FeatureSpec, ...]) -> Checkpoint:
    spec = ModelSpec("hstu", features, AttentionSpec(8, 2, 2, 1, 5, 6), DNN, 20, num_layers=2)
    return Checkpoint(spec, initial_state(spec, 0), "hstu", "native", (), ())


def test_a_model_of_layers_that_see_the_history_has_none():
    with pytest.raises(SpecError) as caught:
        prepare(hstu(PLAIN[:1]), FormRequest(item_table=True))
    assert str(caught.value) == (
        "an item table is for target-attention models: what hstu caches of an event depends on the "
        "events before it"
    )


def test_items_of_more_than_an_id_need_a_file(rng: np.random.Generator):
    spec = make_spec("sim")
    checkpoint = Checkpoint(spec, draw_state(spec, rng), "sim", "native", (), ())
    with pytest.raises(SpecError, match=r"\(cate_id\): give --item-features"):
        prepare(checkpoint, FormRequest(item_table=True))


def test_embeddings_from_outside_and_a_table_exclude_each_other(rng: np.random.Generator):
    spec = make_spec("sim", features=PLAIN[:1])
    checkpoint = Checkpoint(spec, draw_state(spec, rng), "sim", "native", (), ())
    with pytest.raises(SpecError, match="exclude each other"):
        prepare(checkpoint, FormRequest(embeddings="external", item_table=True))


# -- in a bundle

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
        form=FormRequest(item_features=folder / "items.npz", item_table=True),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    exported = export_bundle(request, Stages(), None)  # type: ignore[arg-type]  # no engines
    torch.set_num_threads(threads)
    return exported


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
    known = np.load(bundle.folder.parent.parent / "items.npz")["item_id"]
    assert prepared.catalogue.known == len(known) == 25


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

"""The item table: built as the models encode, and enough for their scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from ckv_testing.draw import DNN, KINDS, PLAIN, VARIANTS, draw_state, exact, make_spec
from torch import Tensor

from ckv_export.catalogue import Catalogue
from ckv_export.checkpoint.load import Checkpoint
from ckv_export.contract import AttentionSpec, EventForm, FeatureSpec, ModelSpec
from ckv_export.deploy.item_table import build_item_table, items_of, layout, require_item_model
from ckv_export.deploy.prepare import FormRequest, prepare
from ckv_export.errors import ParityFailure, SpecError
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.decode_items import DecodeItemsGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.events import EventEmbedding
from ckv_export.model.reference import Reference
from ckv_export.model.registry import build_model
from ckv_export.model.target_attention import TargetAttentionModel
from ckv_export.parity.expected import ExpectedCase, record
from ckv_export.parity.gate import judge, judge_items, require_pass
from ckv_export.parity.inputs import Case, CaseSize, generate, generate_case
from ckv_export.parity.tolerances import TOLERANCES
from ckv_export.runtimes.base import Arrays
from ckv_export.runtimes.torch import TorchRunner
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
        prepare(hstu(PLAIN), FormRequest(item_table=True))
    assert str(caught.value) == (
        "an item table is for target-attention models: what hstu caches of an event depends on the "
        "events before it"
    )


def test_items_of_more_than_an_id_need_a_file(rng: np.random.Generator):
    spec = make_spec("sim")
    checkpoint = Checkpoint(spec, draw_state(spec, rng), "sim", "native", (), ())
    with pytest.raises(SpecError, match=r"\(cate_id\): give --item-features"):
        prepare(checkpoint, FormRequest(item_table=True))
    with pytest.raises(SpecError, match="must be one of item_id, cate_id, got 'price'"):
        prepare(checkpoint, FormRequest(item_table=True, item_key="price"))


def test_items_that_are_an_id_alone_need_none(rng: np.random.Generator):
    spec = make_spec("sim", features=PLAIN[:1])
    checkpoint = Checkpoint(spec, draw_state(spec, rng), "sim", "native", (), ())
    prepared = prepare(checkpoint, FormRequest(item_table=True))
    assert prepared.form == EventForm(item_key="item_id")
    assert [graph.io.name for graph in prepared.graphs] == ["prefill", "decode", "decode_items"]


def test_embeddings_from_outside_and_a_table_exclude_each_other(rng: np.random.Generator):
    spec = make_spec("sim", features=PLAIN[:1])
    checkpoint = Checkpoint(spec, draw_state(spec, rng), "sim", "native", (), ())
    with pytest.raises(SpecError, match="exclude each other"):
        prepare(checkpoint, FormRequest(embeddings="external", item_table=True))

"""The gate's cases cover the sizes where such models go wrong, and are valid requests."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ckv_testing.draw import KINDS, PLAIN, RICH, VARIANTS, drawn_spec, make_spec
from ckv_testing.hstu_models import make_spec as hstu_spec

from ckv_export.catalogue import Catalogue
from ckv_export.contract import FeatureSpec, ModelSpec, decode_io
from ckv_export.parity.inputs import Case, CaseSize, case_sizes, generate, generate_case

SPECS = {
    "window 5, top-k 4": make_spec("sim"),
    "smallest window and top-k": make_spec("sim", window=2, topk=1),
    "top-k above the window": make_spec("twin", window=5, topk=20),
    "window above the top-k": make_spec("eta", window=30, topk=3),
    "no top-k": make_spec("sdim", window=12),
    "no window": make_spec("sdim", window=None),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_sizes_around_every_boundary(spec: ModelSpec):
    sizes = list(case_sizes(spec))
    pairs = {(s.cached, s.appended) for s in sizes}
    totals = {s.cached + s.appended for s in sizes}
    assert {(0, 0), (0, 1), (1, 0), (1, 1)} <= pairs
    boundaries = [int(spec.options["topk"])] if "topk" in spec.options else []
    boundaries += [spec.window - 1] if spec.window else []
    for boundary in boundaries:
        # nothing appended, and reached by the appended event itself
        assert {(n, 0) for n in (boundary - 1, boundary, boundary + 1)} <= pairs
        assert {boundary, boundary + 1} <= {s + t for s, t in pairs if t}
        full = {s.cached + s.appended for s in sizes if s.appended and s.fill == "full"}
        assert {max(boundary, 3), max(boundary, 3) + 1} <= full
    beyond = max([*boundaries, 3])
    assert max(totals) > beyond + 3
    assert any(t > s and s + t > beyond for s, t in pairs), "more appended than cached"
    assert min(s.cached for s in sizes) == 0
    for fill in ("holes", "masked", "repeats"):
        assert all(s.cached > beyond + 1 for s in sizes if s.fill == fill)
    assert {1} < {s.batch for s in sizes}
    assert min(s.candidates for s in sizes) == 1
    assert max(s.candidates for s in sizes) > 20
    assert {s.fill for s in sizes} == {"full", "ragged", "holes", "masked", "repeats"}


@pytest.mark.parametrize("sizes", [{"topk": 100_000}, {"window": 2**31 - 1}])
def test_what_keeps_everything_is_not_tried_beyond_what_it_was_trained_for(sizes: dict[str, int]):
    """It is no boundary, and sums of so many events are rounded beyond any bound."""
    for trained, most in ((30, 1000), (1200, 1200)):
        spec = make_spec("sim", max_len=trained, **sizes)
        longest = [max(s.cached, s.appended) for s in case_sizes(spec)]
        assert {most - 1, most, most + 1} <= set(longest)
        assert max(longest) < most + 10
    names = [s.name for s in case_sizes(make_spec("sim", topk=1000))]
    assert "top-k +0, nothing appended" in names
    assert not any(name.startswith("longest") for name in names), "top-k is that already"


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_names_are_unique(spec: ModelSpec):
    names = [s.name for s in case_sizes(spec)]
    assert len(set(names)) == len(names)


def check_request(spec: ModelSpec, case: Case) -> None:
    """Every input but the cache, of its dtype and shape, with ids that exist and 0 for padding."""
    wanted = [t for t in decode_io(spec).inputs if not t.name.startswith("cache_")]
    assert set(case.inputs) == {t.name for t in wanted}
    sizes = {
        "B": len(case.inputs["history_mask"]),
        "S": case.cached,
        "T": case.appended,
        "C": case.inputs[f"candidate_{spec.item_features[0].name}"].shape[1],
    }
    for tensor in wanted:
        array = case.inputs[tensor.name]
        assert str(array.dtype) == tensor.dtype
        assert array.shape == tensor.shape(sizes)
        assert array.flags.c_contiguous
    for feature in spec.features:
        groups = ("user",) if feature.role == "user" else ("history", "append", "candidate")
        for group in groups:
            array = case.inputs[f"{group}_{feature.name}"]
            if feature.vocab_size and array.size:
                assert 0 <= array.min() <= array.max() < feature.vocab_size
            if group in ("history", "append") and case.name != "holes":
                assert not array[~case.inputs[f"{group}_mask"]].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_cases_are_valid_requests(variant: str, seed: int):
    for kind in KINDS:
        spec = make_spec(kind, variant)
        for case in generate(spec, seed):
            check_request(spec, case)


def test_cases_of_drawn_models_are_valid_requests(seed: int, rng: np.random.Generator):
    for _ in range(10):
        spec = drawn_spec(str(rng.choice(KINDS)), rng)
        for case in generate(spec, seed):
            check_request(spec, case)


def test_table_of_one_row_has_only_id_0(seed: int):
    spec = make_spec("sim", features=(FeatureSpec("x", "item", "categorical", 2, vocab_size=1),))
    for case in generate(spec, seed):
        check_request(spec, case)
        assert not case.inputs["candidate_x"].any()


def test_a_seed_gives_its_own_cases(seed: int):
    spec = make_spec("sim", features=RICH)
    first, same, other = (generate(spec, n) for n in (seed, seed, seed + 1))
    for a, b in zip(first, same, strict=True):
        assert a.name == b.name
        assert all(np.array_equal(a.inputs[name], b.inputs[name]) for name in a.inputs)
    assert any(
        not np.array_equal(a.inputs["candidate_item_id"], b.inputs["candidate_item_id"])
        for a, b in zip(first, other, strict=True)
    )


def test_fills(rng: np.random.Generator):
    spec = make_spec("sim")

    def drawn(fill) -> tuple[np.ndarray, np.ndarray]:
        case = generate_case(spec, CaseSize("x", 40, 20, 4, 2, fill), rng)
        join = [
            np.concatenate([case.inputs[f"{g}_{n}"] for g in ("history", "append")], axis=1)
            for n in ("mask", "item_id")
        ]
        return join[0], join[1]

    mask, ids = drawn("full")
    assert mask.all()
    assert ids.all(), "id 0 is padding's"
    assert not drawn("masked")[0].any()
    mask, ids = drawn("ragged")
    assert mask[0].all(), "user 0 always has all events"
    assert (np.sort(mask, axis=1) == mask).all(), "left-padded"
    assert 0 < mask[1:].mean() < 1
    mask, ids = drawn("holes")
    assert (np.sort(mask, axis=1) != mask).any()
    assert ids[~mask].all(), "nothing but the mask tells which events are real"
    mask, ids = drawn("repeats")
    assert (np.sort(mask, axis=1) == mask).all(), "left-padded"
    assert len(np.unique(ids)) <= 4
    assert 0 in ids[mask], "a real event may have the id of padding"


def test_repeated_items_are_alike_in_every_feature(seed: int):
    """An item's image and price repeat with it, or no search would ever see two alike."""
    spec = make_spec("sim", features=RICH)
    (inputs,) = [c.inputs for c in generate(spec, seed) if c.name == "repeated items"]
    mask = inputs["history_mask"]
    events = [inputs[f"history_{f.name}"][mask] for f in spec.item_features]
    columns = [feature.reshape(len(feature), -1) for feature in events]
    items = np.unique(np.concatenate(columns, axis=1), axis=0)
    assert 1 < len(items) <= 4
    assert not items.any(axis=1).all(), "one is all zeros, as padding is"


def test_histories_beyond_what_biases_were_trained_for(seed: int):
    spec = hstu_spec("two layers, times")
    trained, longest = spec.max_len, max(s.cached + s.appended for s in case_sizes(spec))
    assert longest > trained + 1
    case = generate(spec, seed)[-1]
    groups = ("history", "append", "candidate")
    times = np.concatenate([case.inputs[f"{group}_time"] for group in groups], axis=1)
    assert times.shape == (1, longest + 1)
    assert (np.diff(times) >= 0).all()
    assert times[0, -1] > 2**26, "years"


def test_a_reference_of_layers_is_not_asked_for_thousands_of_events():
    spec = dataclasses.replace(hstu_spec("two layers, times"), max_len=5000)
    assert max(s.cached for s in case_sizes(spec)) < 1010


def test_times_rise_by_everything_that_buckets_tell_apart(rng: np.random.Generator):
    """None, powers of two, what is just short of one; candidates are shown later."""
    spec, gaps, waits = hstu_spec("two layers, times"), set(), set()
    for _ in range(20):
        inputs = generate_case(spec, CaseSize("x", 9, 40, 3, 2), rng).inputs
        mask, times = (
            np.concatenate([inputs[f"{g}_{n}"] for g in ("history", "append")], axis=1)
            for n in ("mask", "time")
        )
        assert not times[~mask].any()
        assert (inputs["candidate_time"] == inputs["candidate_time"][:, :1]).all()
        gaps |= set(np.diff(times[0]).tolist())
        waits |= set((inputs["candidate_time"][:, 0] - times[:, -1])[mask[:, -1]].tolist())
    assert min(gaps) == 0
    assert {1024, 1023} <= gaps
    assert min(waits) >= 0
    assert max(waits) > 1000


@pytest.mark.parametrize("size", [7, 512, 1_000_000])
def test_ids_reach_the_end_of_a_table(size: int, rng: np.random.Generator):
    """Of a large one, from few places all over it: the rest of its file is never read."""
    item = FeatureSpec("x", "item", "categorical", 2, vocab_size=size)
    spec = make_spec("sim", features=(item,))
    ids = generate_case(spec, CaseSize("x", 100, 400, 0, 1, "full"), rng).inputs["history_x"]
    assert (ids.min(), ids.max()) == (1, size - 1)
    assert len(np.unique(ids)) == min(size - 1, 512)


def test_other_features_of_an_item_are_those_of_the_catalogue(seed: int):
    spec = make_spec("sim", features=PLAIN)
    cate = np.arange(30, dtype=np.int32) % 5
    for case in generate(spec, seed, Catalogue("item_id", {"cate_id": cate}, 30)):
        for group in ("history", "append", "candidate"):
            ids = case.inputs[f"{group}_item_id"]
            np.testing.assert_array_equal(case.inputs[f"{group}_cate_id"], cate[ids])


def test_empty_sequences_occur(seed: int):
    """A mean over no id at all: the place where an epsilon once got lost."""
    spec = make_spec("sim", features=RICH)
    cases = generate(spec, seed)
    tags = np.concatenate([c.inputs["candidate_tags"].reshape(-1, 2) for c in cases])
    lengths = (tags != 0).sum(1)
    assert set(lengths) == {0, 1, 2}

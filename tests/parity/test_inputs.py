"""The gate's cases cover the sizes where such models go wrong, and are valid requests."""

from __future__ import annotations

import numpy as np
import pytest
from ckv_testing.draw import KINDS, RICH, VARIANTS, drawn_spec, make_spec
from ckv_testing.hstu_models import make_spec as hstu_spec

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
    beyond = max([*boundaries, 3])
    assert max(totals) > beyond + 3
    assert any(t > s and s + t > beyond for s, t in pairs), "more appended than cached"
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


def test_empty_sequences_occur(seed: int):
    """A mean over no id at all: the place where an epsilon once got lost."""
    spec = make_spec("sim", features=RICH)
    cases = generate(spec, seed)
    tags = np.concatenate([c.inputs["candidate_tags"].reshape(-1, 2) for c in cases])
    lengths = (tags != 0).sum(1)
    assert set(lengths) == {0, 1, 2}

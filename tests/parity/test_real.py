"""Cases drawn from a file of real requests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.draw import PLAIN, RICH, make_spec

from ckv_export.contract import FEATURES, EventForm, ModelSpec
from ckv_export.errors import EventsError
from ckv_export.events import Requests, load_requests
from ckv_export.parity.inputs import CaseSize, generate_case
from ckv_export.parity.real import APPENDED, CANDIDATES, USERS_IN_A_CASE, draw_cases
from ckv_export.runtimes.base import Arrays
from ckv_export.training import demo_spec

SPEC = make_spec("sim", features=RICH)
USERS, EVENTS, OFFERED = 21, 12, 5


def arrays_of(spec: ModelSpec, rng: np.random.Generator, users: int = USERS) -> Arrays:
    """What a file holds: histories, candidates, user features and labels."""
    given = generate_case(spec, CaseSize("x", users, EVENTS, 0, OFFERED), rng).inputs
    groups = {"history": "event"}
    named = {n: n.split("_", 1) for n in given}
    arrays = {
        f"{groups.get(group, group)}_{rest}": given[n]
        for n, (group, rest) in named.items()
        if group != "append"
    }
    return arrays | {"label": rng.integers(0, 2, (users, OFFERED)).astype(np.int8)}


@pytest.fixture
def arrays(rng: np.random.Generator) -> Arrays:
    return arrays_of(SPEC, rng)


def loaded(arrays: Arrays, path: Path, **more) -> Requests:
    np.savez(path / "requests.npz", **arrays)
    return load_requests(path / "requests.npz", SPEC, **more)


def test_whole_histories_stand_before_given_candidates(arrays: Arrays, tmp_path: Path):
    cases = draw_cases(loaded(arrays, tmp_path), SPEC, FEATURES, 0, USERS)
    assert len(cases) == -(-USERS // USERS_IN_A_CASE)
    assert [c.appended for c in cases] == [APPENDED[n % 3] for n in range(len(cases))]
    start = 0
    for case in cases:
        count = len(case.inputs["history_mask"])
        rows = slice(start, start + count)
        start += count
        for name in ("item_id", "mask", "tags", "image"):
            joined = [case.inputs[f"{g}_{name}"] for g in ("history", "append")]
            np.testing.assert_array_equal(np.concatenate(joined, 1), arrays[f"event_{name}"][rows])
        for name in ("candidate_item_id", "user_age"):
            np.testing.assert_array_equal(case.inputs[name], arrays[name][rows])
        np.testing.assert_array_equal(case.labels, arrays["label"][rows])
        assert all(a.flags.c_contiguous for a in case.inputs.values())
    assert start == USERS, "every user once"


def test_users_are_drawn_by_the_seed(arrays: Arrays, tmp_path: Path):
    requests = loaded(arrays, tmp_path)
    names = [
        [c.inputs["candidate_item_id"].tolist() for c in draw_cases(requests, SPEC, FEATURES, s, 9)]
        for s in (1, 1, 2)
    ]
    assert names[0] == names[1] != names[2]
    assert sum(len(part) for part in names[0]) == 9


def test_without_candidates_they_are_events_of_the_file(arrays: Arrays, tmp_path: Path):
    """And whole ones: the features of a candidate belong together."""
    events = {n: a for n, a in arrays.items() if n.startswith("event_")}
    requests = loaded(events, tmp_path)
    assert (requests.candidates, requests.users, requests.labels) == (None, None, None)
    real = arrays["event_mask"]
    known = {
        (int(i), *tags, *image)
        for i, tags, image in zip(
            arrays["event_item_id"][real],
            arrays["event_tags"][real].tolist(),
            arrays["event_image"][real].tolist(),
            strict=True,
        )
    }
    ends = set()
    for case in draw_cases(requests, SPEC, FEATURES, 5, USERS):
        assert case.labels is None
        ends.add(case.cached + case.appended)
        assert case.inputs["candidate_item_id"].shape[1] == CANDIDATES
        assert set(case.inputs) >= {"user_age", "user_liked_tags"}, "generated"
        drawn = zip(
            case.inputs["candidate_item_id"].ravel(),
            case.inputs["candidate_tags"].reshape(-1, 2).tolist(),
            case.inputs["candidate_image"].reshape(-1, 5).tolist(),
            strict=True,
        )
        assert {(int(i), *tags, *image) for i, tags, image in drawn} <= known
    assert max(ends) <= EVENTS
    assert len(ends) > 1, "histories end at a drawn event"


@pytest.mark.parametrize("length", [1, 2])
def test_short_histories_are_divided_as_far_as_they_go(length: int):
    spec = make_spec("sim", features=PLAIN)
    shape = (3 * USERS_IN_A_CASE, length)
    ids = {f"event_{f.name}": np.ones(shape, np.int32) for f in spec.item_features}
    requests = Requests(ids | {"event_mask": np.ones(shape, bool)}, None, None, None)
    ends = set()
    for seed in range(10):
        cases = draw_cases(requests, spec, FEATURES, seed, shape[0])
        assert [c.appended for c in cases] == [min(n, length) for n in APPENDED]
        ends |= {c.cached + c.appended for c in cases}
    assert ends == set(range(1, length + 1))


def test_candidates_are_shown_after_the_last_event(rng: np.random.Generator):
    spec = demo_spec("hstu")
    arrays = arrays_of(spec, rng)
    events = {n: a for n, a in arrays.items() if n.startswith("event_")}
    for case in draw_cases(Requests(events, None, None, None), spec, FEATURES, 1, USERS):
        joined = np.concatenate([case.inputs["history_time"], case.inputs["append_time"]], 1)
        shown = case.inputs["candidate_time"]
        np.testing.assert_array_equal(shown, np.repeat(joined[:, -1:], CANDIDATES, 1))


def test_external_embeddings_are_drawn_too(rng: np.random.Generator):
    form = EventForm("external")
    events = {
        "event_embedding": rng.standard_normal((3, 4, SPEC.d_event)).astype(np.float32),
        "event_mask": np.ones((3, 4), bool),
    }
    (case,) = draw_cases(Requests(events, None, None, None), SPEC, form, 0, 10)
    assert case.inputs["user_embedding"].shape == (3, SPEC.d_user_features)
    assert case.inputs["candidate_embedding"].shape == (3, CANDIDATES, SPEC.d_event)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_file_without_events_is_refused(shape: tuple[int, int]):
    events = {"event_mask": np.zeros(shape, bool)}
    with pytest.raises(EventsError, match="no events"):
        draw_cases(Requests(events, None, None, None), SPEC, FEATURES, 0, 3)


def test_file_of_no_candidates_for_anybody_is_refused(arrays: Arrays, tmp_path: Path):
    none = {n: a[:, :0] for n, a in arrays.items() if n.startswith(("candidate_", "label"))}
    with pytest.raises(EventsError, match="candidates, none for anybody"):
        draw_cases(loaded(arrays | none, tmp_path), SPEC, FEATURES, 0, USERS)


def test_file_of_padding_has_no_candidates():
    spec = dataclasses.replace(SPEC, features=SPEC.features[1:2])
    events = {"event_mask": np.zeros((2, 3), bool), "event_item_id": np.zeros((2, 3), np.int32)}
    with pytest.raises(EventsError, match="no candidates"):
        draw_cases(Requests(events, None, None, None), spec, FEATURES, 0, 3)


# -- the file


def test_labels_of_another_file(arrays: Arrays, tmp_path: Path):
    label = arrays.pop("label")
    np.savez(tmp_path / "labels.npz", label=label)
    found = loaded(arrays, tmp_path, labels=tmp_path / "labels.npz")
    np.testing.assert_array_equal(found.labels, label)
    assert loaded(arrays, tmp_path).labels is None


def test_bad_labels_are_refused(arrays: Arrays, tmp_path: Path):
    for label, told in (
        (arrays["label"] + 1, "must hold only 0 and 1"),
        (arrays["label"][:, :2], "must have the shape"),
    ):
        with pytest.raises(EventsError, match=told):
            loaded(arrays | {"label": label}, tmp_path)
    alone = {n: a for n, a in arrays.items() if n.startswith("event_")}
    np.savez(tmp_path / "labels.npz", label=arrays["label"])
    with pytest.raises(EventsError, match="labels are of candidates"):
        loaded(alone, tmp_path, labels=tmp_path / "labels.npz")


def test_half_of_a_group_is_refused(arrays: Arrays, tmp_path: Path):
    del arrays["candidate_tags"]
    with pytest.raises(EventsError, match="lacks the array 'candidate_tags'"):
        loaded(arrays, tmp_path)


def test_ids_of_candidates_and_users_must_exist(arrays: Arrays, tmp_path: Path):
    for name in ("candidate_item_id", "user_user_id"):
        wrong = {n: a.copy() for n, a in arrays.items()}
        wrong[name].ravel()[0] = 1000
        with pytest.raises(EventsError, match="ids of feature"):
            loaded(wrong, tmp_path)

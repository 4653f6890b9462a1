from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ckv_export.contract import prefill_io
from ckv_export.training import demo_data, demo_spec
from ckv_export.training.data import TOPICS, make_catalogue


def test_histories_are_left_padded_with_zeros_and_of_all_lengths(small_data) -> None:
    clicks = small_data.train
    assert (len(clicks), len(small_data.held_out)) == (1200, 300)
    lengths = clicks.mask.sum(1)
    assert (lengths == 0).any()
    assert (lengths == 1).any()
    assert lengths.max() > 35
    assert (clicks.mask[:, 1:] >= clicks.mask[:, :-1]).all()
    for name, values in clicks.history.items():
        assert not values[~clicks.mask].any(), name
    assert (clicks.history["item_id"][clicks.mask] > 0).all()


def test_tensors_are_as_the_graphs_want_them(small_spec, small_data) -> None:
    spec, clicks = small_spec(), small_data.held_out
    sizes = {"B": len(clicks), "S": spec.max_len}
    for tensor in prefill_io(spec).inputs[: len(spec.item_features)]:
        got = clicks.history[tensor.name.removeprefix("event_")].numpy()
        assert (got.dtype, got.shape) == (np.dtype(tensor.dtype), tensor.shape(sizes))
    for feature in spec.user_features:
        got = clicks.user[feature.name].numpy()
        assert (got.dtype, got.shape) == (np.dtype(feature.dtype), (len(clicks), *feature.inner))


def test_ids_stay_inside_their_tables(small_spec, small_data) -> None:
    clicks = small_data.train
    for feature in small_spec().features:
        group = clicks.user if feature.role == "user" else clicks.history
        if feature.vocab_size:
            assert int(group[feature.name].min()) >= 0
            assert int(group[feature.name].max()) < feature.vocab_size


def test_popularity_falls_within_a_topic_and_category_tells_the_topic() -> None:
    catalogue = make_catalogue(np.random.default_rng(0), items=97, categories=33, numbers=4)
    assert (np.diff(catalogue.popularity) < 0).all()
    assert catalogue.popularity.sum() == pytest.approx(1.0)
    topic = (catalogue.category[catalogue.by_topic] - 1) // 2
    assert (topic == np.arange(TOPICS)[:, None]).all()
    assert not catalogue.image[0].any()


def test_clicks_follow_interests_old_and_new(small_data) -> None:
    clicks = small_data.train
    category, shown = clicks.history["cate_id"], clicks.candidates["cate_id"]
    seen = category.unsqueeze(1) == shown.unsqueeze(-1)
    last, before = seen[..., -10:].sum(-1), seen[..., :-10].sum(-1)
    clicked = clicks.label.bool()
    assert last[clicked].float().mean() > 2 * last[~clicked].float().mean()
    assert before[clicked].float().mean() > 1.2 * before[~clicked].float().mean()
    assert 0.45 < clicks.label.mean() < 0.55
    real = clicks.mask.unsqueeze(1).expand_as(seen)[clicked]
    recent, older = (
        seen[clicked][:, part][real[:, part]].float().mean()
        for part in (slice(-10, None), slice(None, -10))
    )
    assert recent > 1.1 * older  # an event of late tells more of a click


def test_users_tell_of_none_one_or_two_interests_and_of_how_much_they_did(small_data) -> None:
    clicks = small_data.train
    told = clicks.user["declared"] > 0
    assert told.sum(1).unique().tolist() == [0, 1, 2]
    assert (told[:, 1:] <= told[:, :-1]).all()
    torch.testing.assert_close(clicks.user["activity"], clicks.mask.float().mean(1))


def test_the_seed_decides() -> None:
    spec = dataclasses.replace(demo_spec("sim"), max_len=8)
    once, again, other = (demo_data(spec, s, train=9, held_out=3).train for s in (0, 0, 1))
    assert all(torch.equal(once.history[n], again.history[n]) for n in once.history)
    assert not torch.equal(once.history["item_id"], other.history["item_id"])


def test_times_rise_to_the_moment_of_the_candidates(small_spec) -> None:
    clicks = demo_data(small_spec("hstu"), 0, train=50, held_out=1).train
    times, now = clicks.history["time"], clicks.candidates["time"]
    assert (times.dtype, now.dtype) == (torch.int32, torch.int32)
    assert not times[~clicks.mask].any()
    assert (times.diff(dim=1)[clicks.mask[:, :-1]] > 0).all()
    assert (times[:, -1] < now[:, 0]).all()


def test_batches_cover_all_in_the_order_asked_for(small_data) -> None:
    clicks = small_data.held_out
    order = torch.randperm(len(clicks), generator=torch.Generator().manual_seed(0))
    parts = list(clicks.batches(128, order))
    assert [len(p) for p in parts] == [128, 128, 44]
    assert torch.equal(torch.cat([p.label for p in parts]), clicks.label[order])


def test_saved_events_bear_the_graphs_names(small_spec, small_data, tmp_path) -> None:
    path = tmp_path / "events.npz"
    small_data.held_out.take(slice(5)).save(path)
    with np.load(path, allow_pickle=False) as file:
        shapes = {name: file[name].shape for name in file.files}
    assert shapes == {
        "event_item_id": (5, 40),
        "event_cate_id": (5, 40),
        "event_image": (5, 40, 16),
        "event_mask": (5, 40),
        "candidate_item_id": (5, 3),
        "candidate_cate_id": (5, 3),
        "candidate_image": (5, 3, 16),
        "user_age": (5,),
        "user_declared": (5, 5),
        "user_activity": (5,),
        "label": (5, 3),
    }

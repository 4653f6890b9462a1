"""Generated clicks with something to learn in them.

Items belong to latent topics, which their category and their image vector show; within a topic
popularity follows Zipf's law. A user has two older interests and two recent ones, chosen with a
taste that goes with age, and drifts from the older to the recent at a moment of their own.
A clicked candidate is mostly of a recent interest, sometimes of an older one; one that is not
clicked is of any topic, and often of an older interest. So the whole history tells what a
user knows, the last events what is still liked, and both branches of a model have work.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ckv_export.contract import ModelSpec
from ckv_export.training.clicks import ClickData, Clicks

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

TOPICS = 16
AGES = 8  # id 0 stands for an unknown age
NOISE_EVENTS = 0.2  # events of no interest of the user
RECENT_CLICKS = 0.75  # clicks that follow a recent interest, not an older one
STALE_OFFERS = 0.2  # candidates of an older interest among those not clicked
FIRST_INTEREST = 0.65  # how often the first of two interests is the one
DRIFT = (10, 60)  # the change of interests lies that many events back, short of the second
HOURS = 6  # between two events on average
NOW = 1_750_000_000  # seconds since 1970 at which candidates are shown
MAX_DECLARED = 2  # interests that a user tells of


@dataclass(frozen=True)
class Catalogue:
    """Items by id, padding at 0: their category [items] and image [items, numbers].

    `by_topic` [TOPICS, items per topic]: item ids, the most popular first; `popularity`
    [items per topic] sums to 1.
    """

    category: Ints
    image: Floats
    by_topic: Ints
    popularity: Floats


def make_catalogue(
    rng: np.random.Generator, items: int, categories: int, numbers: int
) -> Catalogue:
    """A catalogue with ids below `items` and `categories`; ids tell nothing of the topic."""
    each, kinds = (items - 1) // TOPICS, (categories - 1) // TOPICS
    by_topic = 1 + rng.permutation(items - 1)[: TOPICS * each].reshape(TOPICS, each)
    category, image = np.zeros(items, np.int64), np.zeros((items, numbers))
    category[by_topic] = 1 + kinds * np.arange(TOPICS)[:, None] + np.arange(each) % kinds
    centres = rng.standard_normal((TOPICS, 1, numbers))
    image[by_topic] = centres + 0.5 * rng.standard_normal((TOPICS, each, numbers))
    weights = 1.0 / (3.0 + np.arange(each))
    return Catalogue(category, image, by_topic, weights / weights.sum())


@dataclass(frozen=True)
class Users:
    """age [N]; older and recent interests [N, 2], topics; drift [N], the age of the change."""

    age: Ints
    older: Ints
    recent: Ints
    drift: Ints


def make_users(rng: np.random.Generator, count: int, taste: Floats) -> Users:
    """Users whose four interests are drawn without repetition by `taste` [AGES, TOPICS]."""
    age = rng.integers(0, AGES, count)
    keys = np.log(taste[age]) + rng.gumbel(size=(count, TOPICS))
    interests = np.argsort(-keys, axis=1)[:, :4]
    interests = rng.permuted(interests, axis=1)
    return Users(age, interests[:, :2], interests[:, 2:], rng.integers(*DRIFT, count))


def click_data(spec: ModelSpec, seed: int, train: int, held_out: int, candidates: int) -> ClickData:
    """Histories of one world for a model with the features of `demo_spec`.

    `train` and `held_out` users with `candidates` each, of which half are clicked on average.
    """
    rng = np.random.default_rng(seed)
    features = {f.name: f for f in spec.features}
    catalogue = make_catalogue(
        rng,
        features["item_id"].vocab_size,
        features["cate_id"].vocab_size,
        features["image"].length,
    )
    taste = rng.dirichlet(np.full(TOPICS, 0.5), AGES) + 1e-3
    users = make_users(rng, train + held_out, taste)
    clicks = _clicks(spec, rng, catalogue, users, candidates)
    if spec.timestamp is not None:
        clicks = _timed(clicks, rng, spec.timestamp.name)
    return ClickData(clicks.take(slice(train)), clicks.take(slice(train, None)))


def _clicks(
    spec: ModelSpec, rng: np.random.Generator, catalogue: Catalogue, users: Users, candidates: int
) -> Clicks:
    count, length = len(users.age), spec.max_len
    lengths = (length * rng.random(count) ** 1.5).astype(np.int64)
    mask = np.arange(length) >= length - lengths[:, None]
    history = _draw_items(rng, catalogue, _event_topics(rng, users, length)) * mask
    clicked = rng.random((count, candidates)) < 0.5
    shown = _draw_items(rng, catalogue, _candidate_topics(rng, users, clicked))
    user = {
        "age": torch.from_numpy(users.age.astype(np.int32)),
        "declared": torch.from_numpy(_declared(rng, users, spec).astype(np.int32)),
        "activity": torch.from_numpy((lengths / length).astype(np.float32)),
    }
    return Clicks(
        history=_item_features(catalogue, history),
        mask=torch.from_numpy(mask),
        candidates=_item_features(catalogue, shown),
        user=user,
        label=torch.from_numpy(clicked.astype(np.float32)),
    )


def _event_topics(rng: np.random.Generator, users: Users, length: int) -> Ints:
    """Topics [N, S]; the last event has age 0."""
    shape = (len(users.age), length)
    age = np.arange(length)[::-1]
    softened = age + 5.0 * rng.logistic(size=shape)
    followed = _interest(rng, users, softened < users.drift[:, None])
    return np.where(rng.random(shape) < NOISE_EVENTS, rng.integers(0, TOPICS, shape), followed)


def _candidate_topics(rng: np.random.Generator, users: Users, clicked: NDArray[np.bool_]) -> Ints:
    """Topics [N, C]: an interest where clicked, otherwise an older one or any."""
    recent = clicked & (rng.random(clicked.shape) < RECENT_CLICKS)
    followed = _interest(rng, users, recent)
    offered = clicked | (rng.random(clicked.shape) < STALE_OFFERS)
    return np.where(offered, followed, rng.integers(0, TOPICS, clicked.shape))


def _interest(rng: np.random.Generator, users: Users, recent: NDArray[np.bool_]) -> Ints:
    """One of the two recent or older interests of each user [N], as `recent` [N, n] says."""
    which = (rng.random(recent.shape) >= FIRST_INTEREST).astype(np.int64)
    rows = np.arange(len(recent))[:, None]
    return np.where(recent, users.recent[rows, which], users.older[rows, which])


def _draw_items(rng: np.random.Generator, catalogue: Catalogue, topics: Ints) -> Ints:
    """An item of each topic by popularity."""
    rank = rng.choice(len(catalogue.popularity), topics.shape, p=catalogue.popularity)
    return catalogue.by_topic[topics, rank]


def _timed(clicks: Clicks, rng: np.random.Generator, name: str) -> Clicks:
    """The same with times: events hours apart, the candidates in the moment after the last."""
    gaps = 1 + rng.exponential(HOURS * 3600.0, clicks.mask.shape).astype(np.int64)
    times = NOW - np.cumsum(gaps[:, ::-1], axis=1)[:, ::-1]
    past = torch.from_numpy(times.astype(np.int32)) * clicks.mask
    now = torch.full_like(clicks.label, NOW, dtype=torch.int32)
    return dataclasses.replace(
        clicks,
        history={**clicks.history, name: past},
        candidates={**clicks.candidates, name: now},
    )


def _declared(rng: np.random.Generator, users: Users, spec: ModelSpec) -> Ints:
    """Topic ids (1 and up) of none, one or two interests, 0 after them: [N, length]."""
    length = next(f.length for f in spec.features if f.name == "declared")
    told = np.zeros((len(users.age), length), np.int64)
    told[:, :MAX_DECLARED] = 1 + np.stack([users.recent[:, 0], users.older[:, 0]], axis=1)
    counts = rng.integers(0, MAX_DECLARED + 1, (len(told), 1))
    return told * (np.arange(length) < counts)


def _item_features(catalogue: Catalogue, items: Ints) -> dict[str, torch.Tensor]:
    return {
        "item_id": torch.from_numpy(items.astype(np.int32)),
        "cate_id": torch.from_numpy(catalogue.category[items].astype(np.int32)),
        "image": torch.from_numpy(catalogue.image[items].astype(np.float32)),
    }

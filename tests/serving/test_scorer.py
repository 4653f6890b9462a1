"""Requests served from a store score as the reference scores the users' true histories."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from ckv_testing.scoring import SCORE, ask, check, feeds_seen, scorer, with_profile
from ckv_testing.serving import Shop, cached

from ckv_export.cache.record import count
from ckv_export.contract import Range
from ckv_export.errors import StoreError
from ckv_export.runtimes.base import Arrays
from ckv_export.serving import Answer, Decode, Request, Scorer, ScorerOptions
from ckv_export.store import Store, token_of
from ckv_export.store.base import KeyedWrite

pytestmark = pytest.mark.usefixtures("one_thread")


def test_users_grow_from_nothing_to_far_beyond_the_window(
    shop: Shop, store: Store, rng: np.random.Generator
):
    users = {f"u{i}": shop.user(0, rng) for i in range(4)}
    served = scorer(shop, store)
    for _ in range(9):
        counts = [3, *(int(rng.integers(0, 4)) for _ in range(3))]
        asked = [
            ask(shop, user, rng, name, count, int(rng.integers(1, 5)))
            for (name, user), count in zip(users.items(), counts, strict=True)
        ]
        answers = served.score([request for request, _ in asked])
        for answer, (request, scores) in zip(answers, asked, strict=True):
            check(answer, scores, users[request.user].count)
    assert max(user.count for user in users.values()) > 9


@pytest.mark.parametrize("appended", [1, 3])
def test_an_event_counts_alike_with_its_request_and_after_it(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator, appended: int
):
    """In HSTU's full record an old event gives way to each new one, of that user alone."""
    shop = shops("hstu")
    served = scorer(shop, store, ScorerOptions("float32", max_events=4))
    user, other = shop.user(0, rng), shop.user(0, rng)
    served.score([ask(shop, u, rng, n, 4)[0] for n, u in (("u", user), ("v", other))])
    request, _ = ask(shop, user, rng, "u", appended)
    beside, scores = ask(shop, other, rng, "v")
    now, still = served.score([request, beside])
    check(still, scores, 4)
    assert isinstance(now, Answer)
    check(served.score([request.without_events()])[0], now.scores, 4 + appended)


@pytest.mark.parametrize("events", [0, 1])
def test_who_has_nothing_in_the_window_attends_to_padding(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator, events: int
):
    """With biases its entries are not zeros; of one event the authors' mask is the padding's."""
    shop = shops("eta")
    asked = [ask(shop, shop.user(0, rng), rng, f"u{n}", events) for n in range(4)]
    served = scorer(shop, store)
    calls = feeds_seen(served)
    answers = served.score([request for request, _ in asked])
    for answer, (_, scores) in zip(answers, asked, strict=True):
        check(answer, scores, events)
    # Scores alone may hardly tell: how far padding moves them depends on the model drawn.
    (feeds,) = calls
    padding = cached(shop, {n: np.zeros_like(a) for n, a in shop.draw(1, rng).items()})
    for name, entry in padding.items():
        wanted = np.broadcast_to(entry, feeds[name].shape)
        np.testing.assert_allclose(feeds[name], wanted, rtol=1e-5, atol=1e-5, err_msg=name)
    assert all(padding[f"cache_{side}_user"].any() for side in "kv"), "zeros would do"


def test_one_call_serves_a_user_s_requests_in_their_order(
    shop: Shop, store: Store, rng: np.random.Generator
):
    users = {"a": shop.user(0, rng), "b": shop.user(0, rng)}
    asked, counts = [], []
    for name, appended in [("a", 1), ("b", 1), ("a", 0), ("b", 0), ("a", 2), ("b", 3), ("a", 0)]:
        asked.append(ask(shop, users[name], rng, name, appended))
        counts.append(users[name].count)
    served = scorer(shop, store)
    calls = feeds_seen(served)
    answers = served.score([request for request, _ in asked])
    for answer, (_, scores), events in zip(answers, asked, counts, strict=True):
        check(answer, scores, events)
    # Rounds: both append; all up to the next append of each; the last. A call of a model with a
    # window has as many new events of each user.
    together = [2, 4, 1] if served.layout.pad_to is None else [2, 2, 1, 1, 1]
    assert [len(feeds["append_mask"]) for feeds in calls] == together
    assert (store.counters().misses, store.counters().hits) == (2, 0), "each is read once"


def test_a_call_has_no_more_users_than_the_graph_takes(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator
):
    shop = with_profile(shops("sim"), B=Range(1, 1, 2))
    served = scorer(shop, store)
    calls = feeds_seen(served)
    asked = [ask(shop, shop.user(0, rng), rng, f"u{i}", 1) for i in range(7)]
    for answer, (_, scores) in zip(served.score([r for r, _ in asked]), asked, strict=True):
        check(answer, scores, 1)
    assert [len(feeds["append_mask"]) for feeds in calls] == [2, 2, 2, 1]


def test_a_request_without_events_may_leave_their_inputs_out(
    shop: Shop, store: Store, rng: np.random.Generator
):
    served, user = scorer(shop, store), shop.user(0, rng)
    served.score([ask(shop, user, rng, appended=2)[0]])
    request, scores = ask(shop, user, rng)
    inputs = {n: a for n, a in request.inputs.items() if not n.startswith("append_")}
    request = Request("u", inputs)
    assert request.appended == 0
    check(served.score([request])[0], scores, 2)


def test_inputs_of_another_width_are_taken_as_what_they_hold(
    shop: Shop, store: Store, rng: np.random.Generator
):
    served, user = scorer(shop, store), shop.user(0, rng)
    wide = {"i": np.int64, "f": np.float64}
    request, scores = ask(shop, user, rng, appended=2)
    inputs = {n: a.astype(wide[a.dtype.kind]) for n, a in request.inputs.items()}
    check(served.score([Request("u", inputs)])[0], scores, 2)
    for name in (n for n, t in served.check.tensors.items() if t.dtype == "float32"):
        whole = np.ones(request.inputs[name].shape, np.int8)
        taken = served.check(Request("u", {**request.inputs, name: whole})).inputs[name]
        assert taken.dtype == np.float32
        assert (taken == 1).all()


def test_scores_do_not_depend_on_who_else_is_in_the_call(
    shop: Shop, store: Store, rng: np.random.Generator
):
    served = scorer(shop, store)
    users = {f"u{i}": shop.user(0, rng) for i in range(5)}
    grown = [ask(shop, u, rng, n, int(rng.integers(1, 9)))[0] for n, u in users.items()]
    served.score(grown)
    asked = [ask(shop, u, rng, n, 0, 2 + i)[0] for i, (n, u) in enumerate(users.items())]
    together = served.score(asked)
    for request, answer in zip(asked, together, strict=True):
        alone = served.score([request])[0]
        assert isinstance(alone, Answer)
        assert isinstance(answer, Answer)
        np.testing.assert_allclose(answer.scores, alone.scores, rtol=0, atol=SCORE)


def test_an_append_of_the_same_name_is_made_once(
    shop: Shop, store: Store, rng: np.random.Generator
):
    served, user = scorer(shop, store), shop.user(0, rng)
    served.score([ask(shop, user, rng, appended=2)[0]])
    request, scores = ask(shop, user, rng, appended=2)
    named = Request("u", request.inputs, token_of("append 7"))
    for _ in range(2):
        check(served.score([named])[0], scores, 4)
    # Within one call as well, and of another user it is another append.
    other = Request("v", request.inputs, token_of("append 7"))
    answers = served.score([named, other, other])
    check(answers[0], scores, 4)
    assert [a.events for a in answers[1:] if isinstance(a, Answer)] == [2, 2]
    entry = store.read(["u"])[0]
    assert entry is not None
    assert count(served.layout, entry.record) == min(4, served.max_events)


@pytest.mark.parametrize("most", [None, 9])
def test_max_events_caps_what_is_stored_and_nothing_that_is_scored(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator, most: int | None
):
    shop = shops("sim")
    served = scorer(shop, store, ScorerOptions("float32", max_events=most))
    user = shop.user(0, rng)
    for _ in range(11):
        request, scores = ask(shop, user, rng, appended=3)
        check(served.score([request])[0], scores, user.count)
    entry = store.read(["u"])[0]
    assert entry is not None
    assert count(served.layout, entry.record) == shop.spec.max_len == 9
    assert entry.events == 33
    small = scorer(shop, store, ScorerOptions("float32", max_events=4))
    small.score([ask(shop, user, rng, appended=1)[0]])
    entry = store.read(["u"])[0]
    assert entry is not None
    assert count(small.layout, entry.record) == 4


def test_no_history_is_longer_than_a_record(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator
):
    """Though lengths are rounded up: an engine may be built for no more."""
    shop = shops("hstu")
    served, user = scorer(shop, store, ScorerOptions("float32", max_events=5)), shop.user(0, rng)
    calls = feeds_seen(served)
    for _ in range(3):
        served.score([ask(shop, user, rng, appended=4)[0]])
    assert [feeds["history_mask"].shape for feeds in calls] == [(1, 0), (1, 5), (1, 5)]


@pytest.mark.parametrize(("most", "held"), [(7, (2, 4, 5, 5, 5)), (1, (0,) * 5)])
def test_what_a_store_elsewhere_is_not_sent_again_stands_there(
    shop: Shop, store: Store, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch,
    most: int, held: tuple[int, ...],
):  # fmt: skip
    """All old events that a record still holds, from the value before to the one after."""
    served, user = scorer(shop, store, ScorerOptions("float32", max_events=most)), shop.user(0, rng)
    new = min(2, most) * served.layout.events.row_bytes
    write, kept = store._put, []

    def checked(writes: Sequence[KeyedWrite]) -> list[bool]:
        for each in writes:
            (old,) = store._get([each.key])
            if each.kept is not None:
                before, after, length = each.kept.old, each.kept.new, each.kept.length
                there = b"" if old is None else old[before : before + length]
                assert each.value[after : after + length] == there
                assert len(each.value) - after - length == new
            kept.append(0 if each.kept is None else each.kept.length)
        return write(writes)

    monkeypatch.setattr(store, "_put", checked)
    for _ in range(6):
        served.score([ask(shop, user, rng, appended=2)[0]])
    row = served.layout.events.row_bytes
    assert kept == [0, *(row * events for events in held)]


@pytest.mark.parametrize(("events", "shapes"), [(9, [(1, 0), (1, 1)]), (0, [(1, 0), (1, 0)])])
def test_warm_up_leaves_no_trace(
    shop: Shop, store: Store, events: int, shapes: list[tuple[int, int]]
):
    served = scorer(with_profile(shop, T=Range(0, 0, events)), store)
    calls = feeds_seen(served)
    served.warm_up()
    assert [feeds["append_mask"].shape for feeds in calls] == shapes
    assert store.counters().bytes_written == 0


def test_half_precision_costs_what_half_precision_costs(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator
):
    shop = shops("sim")
    served, user = scorer(shop, store, ScorerOptions()), shop.user(0, rng)
    served.score([ask(shop, user, rng, appended=9)[0]])
    request, scores = ask(shop, user, rng)
    answer = served.score([request])[0]
    assert isinstance(answer, Answer)
    np.testing.assert_allclose(answer.scores, scores, rtol=0, atol=2e-2)


# -- somebody else


class Meddling:
    """A decode function during which another server appends."""

    def __init__(self, decode: Decode, other: Scorer, requests: list[Request]) -> None:
        self.decode, self.other, self.requests = decode, other, requests

    def __call__(self, feeds: Arrays) -> Arrays:
        if self.requests:
            assert isinstance(self.other.score([self.requests.pop(0)])[0], Answer)
        return self.decode(feeds)


def test_an_append_in_between_is_seen(shop: Shop, store: Store, rng: np.random.Generator):
    other, user = scorer(shop, store), shop.user(0, rng)
    meddled = [ask(shop, user, rng, appended=n)[0] for n in (1, 2)]
    request, scores = ask(shop, user, rng, appended=1)
    served = scorer(shop, store)
    served.decode = Meddling(served.decode, other, meddled)
    check(served.score([request])[0], scores, 4)
    assert served.store.counters().conflicts == 2


def test_the_same_append_by_another_server_meanwhile_is_the_same(
    shop: Shop, store: Store, rng: np.random.Generator
):
    """A client that lost patience has sent its request to another server as well."""
    other, user = scorer(shop, store), shop.user(0, rng)
    request, scores = ask(shop, user, rng, appended=2)
    named = Request("u", request.inputs, token_of("click 1"))
    served = scorer(shop, store)
    served.decode = Meddling(served.decode, other, [named])
    check(served.score([named])[0], scores, 2)
    entry = store.read(["u"])[0]
    assert entry is not None
    assert entry.events == 2


def test_a_write_that_happened_and_was_not_heard_of_is_not_repeated(
    shop: Shop, store: Store, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    served, user = scorer(shop, store), shop.user(0, rng)
    request, scores = ask(shop, user, rng, appended=2)
    named = Request("u", request.inputs, token_of("click 1"))
    write = store._put

    def unheard(*args: object, **kwargs: object) -> list[bool]:
        write(*args, **kwargs)  # type: ignore[arg-type]
        raise StoreError("the connection is gone")

    monkeypatch.setattr(store, "_put", unheard)
    # What comes after it in the same call reads the record anew.
    failed, answer = served.score([named, named.without_events()])
    assert str(failed) == "the connection is gone"
    check(answer, scores, 2)
    monkeypatch.undo()
    check(served.score([named])[0], scores, 2)


def test_a_long_queue_of_others_is_waited_for(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    shop = shops("items")
    other, user = scorer(shop, store), shop.user(0, rng)
    meddled = [ask(shop, user, rng, appended=1)[0] for _ in range(60)]
    served = scorer(shop, store)
    served.decode = Meddling(served.decode, other, meddled)
    request, scores = ask(shop, user, rng, appended=1)
    check(served.score([request])[0], scores, 61)


def test_users_whose_writes_came_late_wait_together(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    shop, waits = shops("items"), []
    monkeypatch.setattr("time.sleep", waits.append)
    served, other = scorer(shop, store), scorer(shop, store)
    asked = [ask(shop, shop.user(0, rng), rng, appended=1) for _ in range(3)]
    requests = [Request(f"u{i}", request.inputs) for i, (request, _) in enumerate(asked)]
    meddled = list(requests[:2])
    decode = served.decode

    def late(feeds: Arrays) -> Arrays:
        while meddled:
            other.score([meddled.pop()])
        return decode(feeds)

    served.decode = late
    answers = served.score(requests)
    assert [answer.events for answer in answers if isinstance(answer, Answer)] == [2, 2, 1]
    assert len(waits) == 1
    assert 0 <= waits[0] <= 0.001


def test_others_who_never_stop_are_an_error(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator
):
    shop = shops("items")
    other, user = scorer(shop, store), shop.user(0, rng)
    meddled = [ask(shop, user, rng, appended=1)[0] for _ in range(9)]
    served = scorer(shop, store, ScorerOptions("float32", attempts=3))
    served.decode = Meddling(served.decode, other, meddled)
    request, _ = ask(shop, user, rng, appended=1)
    error = served.score([request])[0]
    assert isinstance(error, StoreError)
    assert str(error) == ("others changed the record of user 'u' at each of 3 attempts: try again")
    entry = store.read(["u"])[0]
    assert entry is not None
    assert entry.events == 3

"""Requests served from a store score as the reference scores the users' true histories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.serving import Shop, User

from ckv_export.cache.item_table import load_item_table
from ckv_export.cache.record import count
from ckv_export.errors import ExportError, InputError, RecordError, StoreError
from ckv_export.parity.tolerances import TOLERANCES
from ckv_export.runtimes.base import Arrays
from ckv_export.serving import Answer, Decode, Request, Scorer, ScorerOptions, in_process
from ckv_export.store import Change, Entry, Store, open_store, token_of

pytestmark = pytest.mark.usefixtures("one_thread")

SCORE = 2 * TOLERANCES["score"].absolute
EXACT = ScorerOptions(user_dtype="float32")
DECODERS: dict[Path, Decode] = {}


def decoder(shop: Shop) -> Decode:
    if shop.folder not in DECODERS:
        graph = shop.manifest.graph_names[-1]
        table = load_item_table(shop.folder) if shop.manifest.item_table else None
        io = shop.manifest.graph(graph)
        DECODERS[shop.folder] = in_process(shop.folder / f"{graph}.onnx", io, table)
    return DECODERS[shop.folder]


def scorer(shop: Shop, store: Store, options: ScorerOptions = EXACT) -> Scorer:
    return Scorer(shop.manifest, store, decoder(shop), options)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"sqlite:///{tmp_path / 'users.db'}")


def ask(
    shop: Shop,
    user: User,
    rng: np.random.Generator,
    name: str = "u",
    appended: int = 0,
    candidates: int = 3,
) -> tuple[Request, np.ndarray]:
    """A request, and the scores that it must have; the user has done what it says."""
    events = shop.draw(appended, rng, shop.last(user))
    shop.grow(user, events)
    offered = shop.draw(candidates, rng, shop.last(user))
    request = Request(name, shop.inputs(user, events, offered))
    return request, shop.scores(user, offered)


def check(answer: object, scores: np.ndarray, events: int) -> None:
    assert isinstance(answer, Answer), repr(answer)
    np.testing.assert_allclose(answer.scores, scores, rtol=0, atol=SCORE)
    assert answer.events == events


def test_users_grow_from_nothing_to_far_beyond_the_window(
    shop: Shop, store: Store, rng: np.random.Generator
):
    users = {f"u{i}": shop.user(0, rng) for i in range(4)}
    served = scorer(shop, store)
    for _ in range(9):
        asked = [
            ask(shop, user, rng, name, int(rng.integers(0, 4)), int(rng.integers(1, 5)))
            for name, user in users.items()
        ]
        answers = served.score([request for request, _ in asked])
        for answer, (request, scores) in zip(answers, asked, strict=True):
            check(answer, scores, users[request.user].count)
    assert max(user.count for user in users.values()) > 9


def test_one_call_serves_a_user_s_requests_in_their_order(
    shop: Shop, store: Store, rng: np.random.Generator
):
    users = {"a": shop.user(0, rng), "b": shop.user(0, rng)}
    asked, counts = [], []
    for name, appended in [("a", 1), ("b", 1), ("a", 0), ("b", 0), ("a", 2), ("b", 3), ("a", 0)]:
        asked.append(ask(shop, users[name], rng, name, appended))
        counts.append(users[name].count)
    calls: list[int] = []
    served = scorer(shop, store)
    decode = served.decode

    def counted(feeds: Arrays) -> Arrays:
        calls.append(len(feeds["append_mask"]))
        return decode(feeds)

    served.decode = counted
    answers = served.score([request for request, _ in asked])
    for answer, (_, scores), events in zip(answers, asked, counts, strict=True):
        check(answer, scores, events)
    assert sum(calls) == 7
    assert len(calls) < 7


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


def test_max_events_caps_what_is_stored_and_nothing_that_is_scored(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator
):
    shop = shops("sim")
    served, user = scorer(shop, store), shop.user(0, rng)
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
    assert [str(error) for error in served.score([named])] == ["the connection is gone"]
    monkeypatch.undo()
    check(served.score([named])[0], scores, 2)


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


# -- one bad request among good ones


def spoiled(case: str, request: Request) -> Request:
    inputs = dict(request.inputs)
    ids = inputs["candidate_item_id"].copy()
    if case == "id":
        ids[0] = 10**6
    elif case == "negative":
        ids[0] = -1
    elif case == "dtype":
        ids = ids.astype(np.float32)
    elif case == "shape":
        ids = ids[None]
    elif case == "lacks":
        del inputs["candidate_item_id"]
        return Request(request.user, inputs)
    elif case == "unknown":
        return Request(request.user, inputs | {"candidate_itemid": ids})
    elif case == "many":
        ids = np.ones(2000, np.int32)
        return Request(request.user, inputs | {n: ids for n in inputs if n.startswith("candidate")})
    elif case == "nobody":
        return Request("", inputs)
    return Request(request.user, inputs | {"candidate_item_id": ids})


BAD = {
    "id": "'candidate_item_id' must lie in [0, 23), got 1000000",
    "negative": "got -1",
    "dtype": "'candidate_item_id' must be int32, got float32",
    "shape": "'candidate_item_id' must have the shape",
    "lacks": "'candidate_item_id' is missing",
    "unknown": "no input 'candidate_itemid'; did you mean 'candidate_item_id'?",
    "many": "at most 1024 candidates are scored in one request, got 2000",
    "nobody": "an empty user id",
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_harms_no_other(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator, case: str
):
    shop = shops("sim")
    served, user = scorer(shop, store), shop.user(0, rng)
    good, scores = ask(shop, user, rng, appended=1)
    bad = spoiled(case, ask(shop, shop.user(0, rng), rng, "v", appended=1)[0])
    first, second = served.score([bad, good])
    assert isinstance(first, InputError)
    assert BAD[case] in str(first)
    check(second, scores, 1)
    assert store.read(["v"]) == [None]


@pytest.mark.parametrize("damage", ["flipped", "other model", "no entry"])
def test_a_bad_record_harms_no_other(
    shops: Callable[[str], Shop],
    store: Store,
    rng: np.random.Generator,
    damage: str,
    tmp_path: Path,
):
    shop = shops("sim")
    served, user, bad = scorer(shop, store), shop.user(0, rng), shop.user(0, rng)
    served.score([ask(shop, bad, rng, "bad", 3)[0]])
    entry = store.read(["bad"])[0]
    assert entry is not None
    record = bytearray(entry.record)
    if damage == "flipped":
        record[-1] ^= 1
    elif damage == "other model":
        record = bytearray(other_record(shops("hstu"), rng, tmp_path))
    store.write([Change("bad", Entry(bytes(record)), entry)])
    if damage == "no entry":
        connection = store._connection  # type: ignore[attr-defined]
        connection.execute("UPDATE entries SET value = ?", (b"junk",))
    before = [ask(shop, user, rng, "good", 1), ask(shop, bad, rng, "bad", 1)]
    answers = served.score([request for request, _ in before])
    check(answers[0], before[0][1], 1)
    assert isinstance(answers[1], RecordError)
    assert "user 'bad'" in str(answers[1])


def other_record(shop: Shop, rng: np.random.Generator, folder: Path) -> bytes:
    with open_store(f"sqlite:///{folder / 'other.db'}") as store:
        scorer(shop, store).score([ask(shop, shop.user(0, rng), rng, appended=1)[0]])
        entry = store.read(["u"])[0]
        assert entry is not None
        return entry.record


def test_a_runtime_that_fails_is_every_request_s_error_and_appends_nothing(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator
):
    shop = shops("sim")
    served, user = scorer(shop, store), shop.user(0, rng)
    decode = served.decode

    def failing(feeds: Arrays) -> Arrays:
        raise ExportError("out of memory")

    served.decode = failing
    request = ask(shop, user, rng, appended=1)[0]
    assert [str(e) for e in served.score([request])] == ["out of memory"]
    assert store.read(["u"]) == [None]
    served.decode = decode
    assert isinstance(served.score([request])[0], Answer)


def test_warm_up_leaves_no_trace(shop: Shop, store: Store):
    served = scorer(shop, store)
    served.warm_up()
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

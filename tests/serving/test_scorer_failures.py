"""A bad request, a bad record or a failing runtime harms no other request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.scoring import ask, check, scorer, with_profile
from ckv_testing.serving import Shop

from ckv_export.contract import Range
from ckv_export.errors import ExportError, InputError, RecordError, StoreError
from ckv_export.runtimes.base import Arrays
from ckv_export.serving import Answer, Request, ScorerOptions
from ckv_export.store import Change, Entry, Store, open_store

pytestmark = pytest.mark.usefixtures("one_thread")


USERS = {"nobody": "", "bytes": b"v", "half a character": "v\ud800"}
DTYPES = ("float32", "bool")
PRICES = {"not a number": np.nan, "too large": 1e39}
TOKENS = {"short token": b"click 7", "text token": "click 78"}


def spoiled(case: str, request: Request) -> Request:
    inputs = dict(request.inputs)
    ids = inputs["candidate_item_id"].copy()
    if case == "id":
        ids[0] = 10**6
    elif case == "negative":
        ids[0] = -1
    elif case in DTYPES:
        ids = ids.astype(case)
    elif case in PRICES:
        prices = np.array([1, 2, PRICES[case]])
        return Request(request.user, inputs | {"candidate_price": prices})
    elif case == "lacks an event's":
        del inputs["append_price"]
        return Request(request.user, inputs)
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
    elif case in USERS:
        return Request(USERS[case], inputs)  # type: ignore[arg-type]
    elif case in TOKENS:
        return Request(request.user, inputs, TOKENS[case])  # type: ignore[arg-type]
    return Request(request.user, inputs | {"candidate_item_id": ids})


BAD = {
    "id": "'candidate_item_id' must lie in [0, 23), got 1000000",
    "negative": "got -1",
    "float32": "'candidate_item_id' must be int32, got float32",
    "bool": "'candidate_item_id' must be int32, got bool",
    "not a number": "'candidate_price' holds NaN or numbers too large for float32",
    "too large": "'candidate_price' holds NaN or numbers too large for float32",
    "lacks an event's": "'append_price' is missing",
    "shape": "'candidate_item_id' must have the shape",
    "lacks": "'candidate_item_id' is missing",
    "unknown": "no input 'candidate_itemid'; did you mean 'candidate_item_id'?",
    "many": "at most 1024 candidates are scored in one request, got 2000",
    "nobody": "an empty user id",
    "bytes": "must name its user by a text, got b'v'",
    "half a character": "a user's id must be text in UTF-8",
    "short token": "must be the 8 bytes of token_of(), got b'click 7'",
    "text token": "must be the 8 bytes of token_of(), got 'click 78'",
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


def test_every_id_must_lie_in_its_table(shop: Shop, store: Store, rng: np.random.Generator):
    """What a graph reads for another is not defined, and other users are in the same call."""
    served, rows = scorer(shop, store), {f.name: f.vocab_size for f in shop.spec.features}
    request = ask(shop, shop.user(0, rng), rng, appended=1)[0]
    tables = [n for n, t in served.check.tensors.items() if t.dtype == "int32"]
    for name in tables:
        size = rows[name.split("_", 1)[1]]
        low, end = (0, size) if size else (-(2**31), 2**31)
        for wrong in (low - 1, end):
            values = np.full_like(request.inputs[name], 1, dtype=np.int64)
            values.flat[-1] = wrong
            (error,) = served.score([Request("u", {**request.inputs, name: values})])
            says = f"the input {name!r} must lie in [{low}, {end}), got {wrong}"
            assert (type(error), str(error)) == (InputError, says)
            values.flat[-1] = end - 1 if wrong == end else low
            served.check(Request("u", {**request.inputs, name: values}))
    assert {"append_item_id", "candidate_item_id"} <= set(tables)


@pytest.mark.parametrize(
    "profile", [{"S": Range(0, 9, 40), "T": Range(0, 1, 40)}, {"T": Range(0, 1, 4)}]
)
def test_no_more_is_appended_than_a_scored_history_and_the_graph_hold(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator, profile: dict[str, Range]
):
    """The profile may be wider than the history that the model was trained with."""
    shop = shops("sim")
    length = min(shop.spec.max_len, profile["T"].max)
    served = scorer(with_profile(shop, **profile), store)
    user = shop.user(0, rng)
    request, scores = ask(shop, user, rng, appended=length)
    check(served.score([request])[0], scores, length)
    (error,) = served.score([ask(shop, user, rng, appended=length + 1)[0]])
    assert isinstance(error, InputError)
    assert str(error) == f"at most {length} events are appended in one request, got {length + 1}"


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
    served.score([ask(shop, bad, rng, "bad", 3)[0], ask(shop, user, rng, "good", 4)[0]])
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
        connection.execute("UPDATE entries SET value = ? WHERE key LIKE '%bad'", (b"junk",))
    before = [ask(shop, user, rng, "good", 1), ask(shop, bad, rng, "bad", 1)]
    answers = served.score([request for request, _ in before])
    check(answers[0], before[0][1], 5)
    assert isinstance(answers[1], RecordError)
    assert "user 'bad'" in str(answers[1])


def other_record(shop: Shop, rng: np.random.Generator, folder: Path) -> bytes:
    with open_store(f"sqlite:///{folder / 'other.db'}") as store:
        scorer(shop, store).score([ask(shop, shop.user(0, rng), rng, appended=1)[0]])
        entry = store.read(["u"])[0]
        assert entry is not None
        return entry.record


def test_an_entry_that_can_not_be_stored_harms_no_other(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator
):
    shop = shops("sim")
    served, user, bad = scorer(shop, store, ScorerOptions()), shop.user(0, rng), shop.user(0, rng)
    decode = served.decode

    def huge(feeds: Arrays) -> Arrays:
        made = decode(feeds)
        made["append_k_user"] = made["append_k_user"].copy()
        made["append_k_user"][0] = 1e6
        return made

    served.decode = huge
    asked = [ask(shop, bad, rng, "bad", 1), ask(shop, user, rng, "good", 1)]
    refused, answer = served.score([request for request, _ in asked])
    assert isinstance(refused, RecordError)
    assert "user 'bad': 'cache_k_user' holds 1e+06, too large for float16" in str(refused)
    check(answer, asked[1][1], 1)
    assert store.read(["bad"]) == [None]


def test_a_store_that_can_not_be_read_is_every_request_s_error(
    shops: Callable[[str], Shop],
    store: Store,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
):
    """Scores of a history that nobody could read would be those of a new user."""
    shop = shops("sim")
    served, user = scorer(shop, store), shop.user(0, rng)
    served.score([ask(shop, user, rng, appended=3)[0]])
    asked = [ask(shop, user, rng), ask(shop, shop.user(0, rng), rng, "v")]
    requests = [request for request, _ in asked]

    def gone(keys: Sequence[str]) -> list[bytes | None]:
        raise StoreError("the connection is gone")

    monkeypatch.setattr(store, "_get", gone)
    assert [str(e) for e in served.score(requests)] == ["the connection is gone"] * 2
    monkeypatch.undo()
    for answer, (_, scores), events in zip(served.score(requests), asked, (3, 0), strict=True):
        check(answer, scores, events)


def test_a_runtime_that_fails_is_every_request_s_error_and_appends_nothing(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator
):
    shop = shops("sim")
    served, calls = scorer(shop, store), []
    decode = served.decode

    def failing(feeds: Arrays) -> Arrays:
        calls.append(feeds)
        raise ExportError("out of memory")

    served.decode = failing
    requests = [ask(shop, shop.user(0, rng), rng, name, appended=1)[0] for name in "uv"]
    assert [str(e) for e in served.score(requests)] == ["out of memory"] * 2
    assert len(calls) == 1, "it is not tried with each of them again"
    assert store.read(["u", "v"]) == [None, None]
    served.decode = decode
    assert isinstance(served.score(requests)[0], Answer)

"""A bad request, a bad record or a failing runtime harms no other request."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.scoring import ask, check, scorer
from ckv_testing.serving import Shop

from ckv_export.contract import Range
from ckv_export.errors import ExportError, InputError, RecordError, StoreError
from ckv_export.runtimes.base import Arrays
from ckv_export.serving import Answer, Request, ScorerOptions
from ckv_export.store import Change, Entry, Store, open_store

pytestmark = pytest.mark.usefixtures("one_thread")


USERS = {"nobody": "", "bytes": b"v", "half a character": "v\ud800"}
TOKENS = {"short token": b"click 7", "text token": "click 78"}


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
    elif case in USERS:
        return Request(USERS[case], inputs)  # type: ignore[arg-type]
    elif case in TOKENS:
        return Request(request.user, inputs, TOKENS[case])  # type: ignore[arg-type]
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


def test_no_more_is_appended_than_a_scored_history_holds(
    shops: Callable[[str], Shop], store: Store, rng: np.random.Generator
):
    """The profile may be wider than the history that the model was trained with."""
    shop = shops("sim")
    length = shop.spec.max_len
    profile = shop.manifest.profile.replaced(
        shop.spec, {"S": Range(0, 9, 40), "T": Range(0, 1, 40)}
    )
    wide = dataclasses.replace(shop, manifest=dataclasses.replace(shop.manifest, profile=profile))
    served = scorer(wide, store)
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
    before = [ask(shop, user, rng, "good"), ask(shop, bad, rng, "bad", 1)]
    answers = served.score([request for request, _ in before])
    check(answers[0], before[0][1], 4)
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

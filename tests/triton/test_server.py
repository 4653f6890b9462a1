"""A real server on what `ckv-export triton` writes: HTTP, gRPC, load, crashes, restarts.

Three models in one server: an item table and HSTU run in-process, SIM by calls between models and
in two processes. HSTU keeps its users in a file, the others in Redis.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from ckv_testing.exports import Export
from ckv_testing.servers import RedisServer, TritonServer
from ckv_testing.serving import Shop, check_record, exported_shop
from ckv_testing.triton import Client, stand_in

from ckv_export.cache.record import RecordLayout, decode
from ckv_export.cli.main import main
from ckv_export.parity.tolerances import TOLERANCES
from ckv_export.runtimes.base import Array
from ckv_export.store import Store, open_store

pytest.importorskip("tritonclient.grpc", reason="the package tritonclient is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SCORE = 2 * TOLERANCES["score"].absolute
PLATFORM = {"sim": "onnx", "items": "in-process", "hstu": "in-process"}
FORMS = tuple(PLATFORM)


class Place:
    """Everything that runs, and the three shops."""

    def __init__(self, server: TritonServer, redis: RedisServer, shops: dict[str, Shop]) -> None:
        self.server, self.redis, self.shops = server, redis, shops

    def client(self, protocol: str) -> Client:
        return Client(protocol, getattr(self.server, protocol))

    def store(self, form: str) -> Store:
        return open_store(address(form, self.redis))


def address(form: str, redis: RedisServer) -> str:
    if form == "hstu":
        return f"sqlite:///{redis.folder / 'users.db'}"
    return f"{redis.url}?prefix={form}"


@pytest.fixture(scope="module")
def place(
    shops: Callable[[str], Shop],
    exported: Callable[[str], Export],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("server")
    with RedisServer(folder) as redis:
        server = TritonServer([folder / form for form in FORMS], folder)
        (folder / "bundle").mkdir()
        sim = exported_shop(exported("sim"), folder / "bundle", max_len=500)
        made = {"sim": sim, "items": shops("items"), "hstu": shops("hstu")}
        for form, shop in made.items():
            arguments = [str(shop.folder), f"--out={folder / form}", "--user-dtype=fp32"]
            arguments += [f"--store={address(form, redis)}", f"--platform={PLATFORM[form]}"]
            arguments += [f"--instances={2 if form == 'sim' else 1}"]
            assert main(["triton", *arguments]) == 0
        for model in ("prefill", "decode"):
            stand_in(folder / "sim" / f"{sim.manifest.name}_{model}")
        with server:
            yield Place(server, redis, made)


def check(got: tuple[Array, Array], scores: Array, events: int) -> None:
    np.testing.assert_allclose(got[0][0], scores, rtol=0, atol=SCORE)
    assert got[1].tolist() == [events]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_every_score_is_the_reference_s(
    place: Place, form: str, protocol: str, rng: np.random.Generator
):
    shop, client = place.shops[form], place.client(protocol)
    users = {f"{protocol} ü {i}": shop.user(0, rng) for i in range(3)}
    for _ in range(6):
        for name, user in users.items():
            events = shop.next(user, int(rng.integers(0, 4)), rng)
            shop.grow(user, events)
            offered = shop.offer(user, int(rng.integers(1, 5)), rng)
            inputs = shop.inputs(user, events, offered)
            if not len(events["item_id"]) and rng.random() < 0.5:
                inputs = {n: a for n, a in inputs.items() if not n.startswith("append_")}
            got = client.score(shop.manifest.name, name, inputs)
            check(got, shop.scores(user, offered), user.count)
    client.close()


@pytest.mark.parametrize("form", FORMS)
def test_one_request_of_several_users(place: Place, form: str, rng: np.random.Generator):
    """A row each, of new events as many as the mask says."""
    shop, client = place.shops[form], place.client("grpc")
    users = [shop.user(0, rng) for _ in range(3)]
    counts = [0, 2, 3]
    rows, wanted = [], []
    for user, count in zip(users, counts, strict=True):
        events = shop.next(user, count, rng)
        shop.grow(user, events)
        padded = {n: np.concatenate([a, np.zeros((3 - count, *a.shape[1:]), a.dtype)])
                  for n, a in events.items()}  # fmt: skip
        offered = shop.offer(user, 4, rng)
        rows.append(shop.inputs(user, padded, offered))
        wanted.append(shop.scores(user, offered))
    inputs = {n: np.stack([row[n] for row in rows]) for n in rows[0]}
    mask = {"append_mask": np.arange(3) < np.array(counts)[:, None]}
    names = [f"row {i}" for i in range(3)]
    scores, events = client.score(shop.manifest.name, names, inputs, extra=mask)
    np.testing.assert_allclose(scores, np.stack(wanted), rtol=0, atol=SCORE)
    assert events.tolist() == counts
    client.close()


def test_only_named_appends_are_made_once(place: Place, rng: np.random.Generator):
    shop, client = place.shops["items"], place.client("grpc")
    user = shop.user(0, rng)
    inputs = shop.inputs(user, shop.draw(1, rng), shop.draw(2, rng))
    for append_id, events in [("", 1), ("", 2), ("a", 3), ("a", 3), ("b", 4), (None, 5), ("a", 5)]:
        got = client.score(shop.manifest.name, "named", inputs, append_id)
        assert got[1].tolist() == [events]
    client.close()


def test_bad_requests_are_told_what_is_wrong(place: Place, rng: np.random.Generator):
    shop, client = place.shops["items"], place.client("http")
    user = shop.user(0, rng)
    inputs = shop.inputs(user, shop.draw(1, rng), shop.draw(2, rng))
    bad = inputs | {"candidate_item_id": np.array([1, 30], np.int32)}
    with pytest.raises(Exception, match=r"\[400\].*must lie in \[0, 30\), got 30"):
        client.score(shop.manifest.name, "bad", bad)
    lacking = {n: a for n, a in inputs.items() if n != "user_age"}
    with pytest.raises(Exception, match="user_age"):
        client.score(shop.manifest.name, "bad", lacking)
    with pytest.raises(Exception, match="empty user id"):
        client.score(shop.manifest.name, "", inputs)
    module = client.module
    junk = [module.InferInput("user_id", [1, 1], "BYTES")]
    junk[0].set_data_from_numpy(np.array([[b"\xff"]], object))
    for name, array in inputs.items():
        array = np.atleast_1d(array)[None]
        junk.append(module.InferInput(name, array.shape, "INT32"))
        junk[-1].set_data_from_numpy(array)
    with pytest.raises(Exception, match="must be texts in UTF-8"):
        client.client.infer(shop.manifest.name, junk)
    with place.store("items") as store:
        assert store.read(["bad", ""]) == [None, None]
    client.close()


# -- load


class Session:
    """One user, one request at a time; a failed one is sent again under the same name."""

    def __init__(self, place: Place, form: str, name: str, rng: np.random.Generator) -> None:
        self.place, self.shop, self.name, self.rng = place, place.shops[form], name, rng
        self.user = self.shop.user(0, rng)
        self.failures: list[str] = []

    def run(self, client: Client, requests: int) -> None:
        shop, rng = self.shop, self.rng
        counts = rng.integers(0, 2, requests)
        planned = shop.next(self.user, int(counts.sum()), rng)
        for i, (count, end) in enumerate(zip(counts, counts.cumsum(), strict=True)):
            events = {n: a[end - count : end] for n, a in planned.items()}
            shop.grow(self.user, events)
            offered = shop.draw(3, rng, shop.last(self.user))
            inputs = shop.inputs(self.user, events, offered)
            got = self.insist(client, inputs, f"{self.name}/{i}")
            assert got[1].tolist() == [self.user.count], self.name
        check(got, shop.scores(self.user, offered), self.user.count)

    def insist(self, client: Client, inputs: dict[str, Array], name: str) -> Any:
        until = time.monotonic() + 60
        while True:
            try:
                return client.score(self.shop.manifest.name, self.name, inputs, name)
            except Exception as error:
                self.failures.append(str(error))
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)


def run_load(
    place: Place, sessions: list[Session], requests: int, meanwhile: Callable[[], None]
) -> float:
    """All sessions at once, a thread and connection each; seconds they took."""
    start = time.monotonic()

    def one(position: int) -> None:
        client = place.client(("grpc", "http")[position % 2])
        sessions[position].run(client, requests)
        client.close()

    with ThreadPoolExecutor(len(sessions)) as pool:
        done = [pool.submit(one, position) for position in range(len(sessions))]
        meanwhile()
        for future in done:
            future.result()
    return time.monotonic() - start


def records_are_those_of(place: Place, sessions: list[Session]) -> None:
    """What the store holds of each user follows from all that the user did, in order."""
    for session in sessions:
        shop = session.shop
        with place.store(shop.form) as store:
            entry = store.read([session.name])[0]
        assert entry is not None
        assert entry.events == session.user.count
        layout = RecordLayout.of(shop.manifest, "float32")
        check_record(shop, session.user, layout, entry.record)


def test_thousands_of_requests_lose_nothing(place: Place, rng: np.random.Generator):
    sessions = [
        Session(place, form, f"load {i}", np.random.default_rng(rng.integers(2**32)))
        for form in FORMS
        for i in range(16)
    ]
    seconds = run_load(place, sessions, 60, lambda: None)
    print(f"{len(sessions) * 60 / seconds:.0f} requests a second")
    assert not [failure for session in sessions for failure in session.failures]
    records_are_those_of(place, sessions)


def test_crowds_around_one_user_append_everything_once(place: Place, rng: np.random.Generator):
    """Whatever order they come in: the record is that order, and scores are the reference's."""
    shop, sessions, each = place.shops["sim"], 12, 20
    user = shop.user(0, rng)
    mine = [shop.draw(each, rng) for _ in range(sessions)]
    for number, events in enumerate(mine):
        # Every event has a price of its own.
        events["price"] = (np.arange(each) + 1 + number * each).astype(np.float32) / 2
    offered = shop.draw(2, rng)

    def one(number: int) -> None:
        client = place.client(("grpc", "http")[number % 2])
        for i in range(each):
            events = {n: a[i : i + 1] for n, a in mine[number].items()}
            client.score(shop.manifest.name, "everybody", shop.inputs(user, events, offered))
        client.close()

    with ThreadPoolExecutor(sessions) as pool:
        list(pool.map(one, range(sessions)))
    with place.store("sim") as store:
        entry = store.read(["everybody"])[0]
    assert entry is not None
    assert entry.events == sessions * each
    order = decode(RecordLayout.of(shop.manifest, "float32"), entry.record)["history_price"]
    every = {n: np.concatenate([events[n] for events in mine]) for n in mine[0]}
    places = (order * 2 - 1).astype(int)
    assert sorted(places) == list(range(sessions * each))
    for number in range(sessions):
        own = places[places // each == number]
        assert list(own) == sorted(own)
    shop.grow(user, {n: a[places] for n, a in every.items()})
    client = place.client("grpc")
    got = client.score(
        shop.manifest.name, "everybody", shop.inputs(user, shop.draw(0, rng), offered)
    )
    check(got, shop.scores(user, offered), sessions * each)
    client.close()


def test_redis_killed_and_restarted_under_load(place: Place, rng: np.random.Generator):
    """Clear errors, then recovery; a request sent again under its name appends once."""
    sessions = [
        Session(place, form, f"crash {i}", np.random.default_rng(rng.integers(2**32)))
        for form in FORMS
        for i in range(4)
    ]

    def crash() -> None:
        for _ in range(2):
            time.sleep(0.4)
            place.redis.kill()
            time.sleep(0.4)
            place.redis.start()

    run_load(place, sessions, 120, crash)
    failures = [failure for session in sessions for failure in session.failures]
    assert failures
    for failure in failures:
        assert failure.startswith(("[503] ", "[StatusCode.UNAVAILABLE] "))
        assert "127.0.0.1" in failure
        assert "can't be used" in failure
    assert any("may or may not have happened" in failure for failure in failures)
    records_are_those_of(place, sessions)


def test_a_restarted_server_goes_on_where_it_was(place: Place, rng: np.random.Generator):
    users = {form: place.shops[form].user(0, rng) for form in FORMS}

    def ask(form: str, appended: int) -> None:
        shop, user, client = place.shops[form], users[form], place.client("grpc")
        events = shop.next(user, appended, rng)
        shop.grow(user, events)
        offered = shop.offer(user, 3, rng)
        got = client.score(shop.manifest.name, "stayer", shop.inputs(user, events, offered))
        check(got, shop.scores(user, offered), user.count)
        client.close()

    for form in FORMS:
        ask(form, 3)
    assert place.server.stop() == 0
    log = place.server.log.read_text()
    assert "Traceback" not in log
    place.server.start()
    for form in FORMS:
        ask(form, 0)
        ask(form, 1)


def test_counters_are_among_the_server_s_metrics(place: Place):
    metrics = place.server.metrics()
    assert 'ckv_store_writes{model="shop-sim"} ' in metrics
    hits = next(line for line in metrics.splitlines() if line.startswith("ckv_store_hits{"))
    assert float(hits.split()[-1]) > 0

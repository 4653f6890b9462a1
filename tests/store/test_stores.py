"""Both stores keep their promises: compared with a dict, raced, expired."""

from __future__ import annotations

import dataclasses
import multiprocessing
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from ckv_testing.writers import add
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from ckv_export.errors import InputError, RecordError
from ckv_export.store import (
    TOKENS_KEPT,
    Change,
    Counters,
    Entry,
    Kept,
    Store,
    check_address,
    open_store,
    token_of,
)
from ckv_export.store.base import KeyedWrite

Open = Callable[[str], Store]
USERS = ("a", "b", "ü:1", "")


class StoreMachine(RuleBasedStateMachine):
    """Random calls on a store and on a dict."""

    store: Store
    model: dict[str, Entry]
    seen: dict[str, list[Entry | None]]

    @rule(users=st.lists(st.sampled_from(USERS), max_size=5))
    def read(self, users: list[str]) -> None:
        assert self.store.read(users) == [self.model.get(u) for u in users]

    @rule(
        user=st.sampled_from(USERS),
        record=st.binary(max_size=40),
        back=st.integers(0, 2),
        force=st.booleans(),
        events=st.integers(0, 2**63),
        tokens=st.integers(0, TOKENS_KEPT),
    )
    def write(
        self, user: str, record: bytes, back: int, force: bool, events: int, tokens: int
    ) -> None:
        """Against what is there now, or was there before."""
        past = self.seen.setdefault(user, [None])
        before = past[-1 - min(back, len(past) - 1)]
        entry = Entry(record, events, tuple(token_of(str(i)) for i in range(tokens)))
        expected = force or before == self.model.get(user)
        assert self.store.write([Change(user, entry, before, force)]) == [expected]
        if expected:
            self.model[user] = entry
            past.append(entry)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), head=st.binary(max_size=9), tail=st.binary(max_size=9))
    def splice(self, data: st.DataObject, head: bytes, tail: bytes) -> None:
        """Grow the middle of what is there by bytes around it."""
        user = data.draw(st.sampled_from(sorted(self.model)))
        before = self.model[user]
        start = data.draw(st.integers(0, len(before.record)))
        end = data.draw(st.integers(start, len(before.record)))
        kept = Kept(start, len(head), end - start)
        record = head + before.record[start:end] + tail
        entry = before.followed_by(record, 1, token_of(head))
        assert self.store.write([Change(user, entry, before, kept=kept)]) == [True]
        self.model[user] = entry
        self.seen[user].append(entry)

    @rule(users=st.lists(st.sampled_from(USERS), max_size=3, unique=True))
    def delete(self, users: list[str]) -> None:
        assert self.store.delete(users) == sum(u in self.model for u in users)
        for user in users:
            self.model.pop(user, None)

    @rule(value=st.binary(max_size=5))
    def note(self, value: bytes) -> None:
        self.store.put_note("a", value)
        assert self.store.note("a") == value
        assert self.store.note("b") is None


def test_store_is_a_dict_that_compares_before_it_writes(url: str, opened: Open):
    store = opened(url)

    class Machine(StoreMachine):
        def __init__(self) -> None:
            super().__init__()
            self.store, self.model, self.seen = store, {}, {}
            store.delete(USERS)

    Machine.TestCase.settings = settings(
        max_examples=20,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    Machine.TestCase().runTest()


def test_one_call_finds_its_own_changes_in_order(url: str, opened: Open):
    store = opened(url)
    one, two = Entry(b"one"), Entry(b"two")
    done = store.write(
        [Change("u", one), Change("u", two), Change("u", two, one), Change("v", one, two)]
    )
    assert done == [True, False, True, False]
    assert store.read(["u", "v"]) == [two, None]


def test_many_users_in_one_call(url: str, opened: Open):
    store = opened(url)
    users = [f"u{i}" for i in range(12_000)]
    changes = [Change(u, Entry(u.encode(), i)) for i, u in enumerate(users)]
    assert all(store.write(changes))
    found = store.read(users[::-1])
    assert [e.events for e in found if e] == list(range(12_000))[::-1]
    assert store.delete(users) == 12_000


def test_counters_count(url: str, opened: Open):
    store = opened(url)
    at_first = store.counters()
    entry = Entry(b"12345")
    store.write([Change("u", entry), Change("u", Entry(b""))])
    store.read(["u", "v"])
    store.delete(["u", "v"])
    counters = dataclasses.asdict(store.counters())
    size = len(entry.pack())
    assert counters == {
        "hits": 1,
        "misses": 1,
        "writes": 1,
        "conflicts": 1,
        "deletes": 1,
        "bytes_read": size,
        "bytes_written": size,
    }
    assert store.evictions() == 0
    assert at_first == Counters()


def test_a_forced_change_takes_nothing_over_from_what_is_there(url: str, opened: Open):
    """Which is another record than the one that the change was made from."""
    store = opened(url)
    before, forced = Entry(b"0123456789"), Entry(b"0123456789ab")
    store.write([Change("u", Entry(b"another record"))])
    assert store.write([Change("u", forced, before, True, Kept(0, 0, 10))]) == [True]
    assert store.read(["u"]) == [forced]


@pytest.fixture
def later(
    url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[float], None]:
    """Let seconds pass for the stores at `url`, in no time: what is to be left does not run out."""
    passed = 0.0

    def by_clock(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    def by_server(seconds: float) -> None:
        client = request.getfixturevalue("redis_server").client()
        for key in client.scan_iter():
            left = client.pttl(key)
            if left > 0:
                client.pexpire(key, max(left - int(1000 * seconds), 1))
        time.sleep(0.01)  # what has a millisecond left is over

    if url.startswith("redis"):
        return by_server
    clock = SimpleNamespace(time=lambda: time.time() + passed)
    monkeypatch.setattr("ckv_export.store.sqlite.time", clock)
    return by_clock


def test_records_and_notes_expire(url: str, opened: Open, later: Callable[[float], None]):
    store, forever = opened(f"{url}?ttl=300"), opened(url)
    first, second = Entry(b"first"), Entry(b"second")
    store.put_note("job", b"state")
    forever.put_note("other job", b"state")
    store.write([Change("u", first), Change("v", first)])
    forever.write([Change("w", first)])
    assert store.read(["u"]) == [first]
    later(200)
    # A write begins the time anew.
    assert store.write([Change("v", second, first)]) == [True]
    later(150)
    assert store.read(["u", "v", "w"]) == [None, second, first]
    # What has expired is no longer there for a change either.
    assert store.write([Change("u", second, first), Change("u", second)]) == [False, True]
    assert [store.note(job) for job in ("job", "other job")] == [None, b"state"]
    assert store.evictions() == 2
    assert forever.write([Change("v", first, second)]) == [True]
    later(300)
    assert store.read(["u", "v"]) == [None, first]


def test_prefixes_are_apart(url: str, opened: Open):
    one, two = opened(f"{url}?prefix=one"), opened(f"{url}?prefix=two")
    entry = Entry(b"x")
    one.write([Change("u", entry)])
    assert two.read(["u"]) == [None]
    assert two.delete(["u"]) == 0
    assert one.read(["u"]) == [entry]


# -- races


def test_no_append_is_lost_or_doubled_between_processes_and_threads(url: str, opened: Open):
    users = ["u", "v"]
    context = multiprocessing.get_context("fork" if url.startswith("sqlite") else "spawn")
    workers: list[threading.Thread | multiprocessing.process.BaseProcess] = [
        context.Process(target=add, args=(url, name, users, 60)) for name in "AB"
    ]
    workers += [threading.Thread(target=add, args=(url, name, users, 60)) for name in "CD"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for entry in opened(url).read(users):
        assert entry is not None
        assert entry.events == 4 * 30
        assert sorted(entry.record) == sorted(b"ABCD" * 30)


def test_one_store_is_shared_by_threads_and_crosses_a_fork(url: str, opened: Open):
    store = opened(url)
    store.write([Change("u", Entry(b"x"))])

    def use() -> None:
        for i in range(30):
            assert store.read(["u"])[0] is not None
            store.put_note(threading.current_thread().name, bytes([i]))

    child = multiprocessing.get_context("fork").Process(target=use)
    child.start()
    threads = [threading.Thread(target=use, name=f"t{i}") for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child.join()
    assert child.exitcode == 0
    assert store.note("t3") == bytes([29])


# -- refusals


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("users.db", "must be sqlite:///FILE or redis://HOST:PORT/DB, got 'users.db'"),
        ("mysql://h/d", "must be sqlite:///FILE"),
        ("sqlite://users.db", "sqlite:////FILE for an absolute path"),
        ("sqlite://host/users.db", "sqlite:////FILE for an absolute path"),
        ("sqlite:///", "got 'sqlite:///'"),
        ("sqlite:///a#1/users.db", "must have no # in its path, got 'sqlite:///a#1/users.db'"),
        ("sqlite:///a.db#", "must have no #"),
        ("sqlite:///what?.db", "got '.db'"),
        ("sqlite:///a.db?tll=3", "got 'tll'; did you mean 'ttl'?"),
        ("sqlite:///a.db?ttl=soon", "ttl must be a number of seconds of at least 0.001"),
        ("sqlite:///a.db?ttl=-1", "got '-1'"),
        ("sqlite:///a.db?ttl=nan", "got 'nan'"),
        ("sqlite:///a.db?ttl=inf", "got 'inf'"),
        ("sqlite:///a.db?ttl=", "ttl must be a number of seconds of at least 0.001, got ''"),
        ("redis://h:1/0?ttl=0", "got '0'"),
        ("redis://h:1/0?timeout=", "timeout must be a number of seconds"),
        ("redis://[h", "must be sqlite:///FILE or redis://HOST:PORT/DB"),
        ("sqlite:///a.db?synchronous=off", "must be one of normal, full, got 'off'"),
        ("redis://h:1/users", "database must be a whole number"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, says: str):
    for refusing in (open_store, check_address):
        with pytest.raises(InputError) as caught:
            refusing(url)
        assert says in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///a.db?ttl=0.001&timeout=9999999999&prefix=&synchronous=full",
        "redis://me:secret@h:1/?client_name=a@b",
        "unix:///run/redis@host/socket?db=1",
    ],
)
def test_an_address_that_is_one_is_none_to_refuse(url: str):
    check_address(url)


@pytest.mark.parametrize(
    "url",
    [
        *(f"{kind}://me:sec{c}ret@h:1/0" for kind in ("redis", "rediss") for c in "/?#"),
        "rediz://me:sec-ret@h:1/0",
        "redis://me:sec-ret@[h",
        "rediz://me:sec@ret@h:1/0",
        "rediz://me:sec\nret@h:1/0",
    ],
)
def test_a_refused_address_is_shown_without_its_password(url: str):
    with pytest.raises(InputError) as caught:
        open_store(url)
    assert "sec" not in str(caught.value)
    assert "ret" not in str(caught.value)
    assert url.rpartition("@")[2] in str(caught.value)


def test_an_entry_is_stored_as_its_layout_says():
    entry = Entry(b"record", 3, (b"older...", b"newer..."), b"revision")
    data = b"CKVS\1\0\2\0revision\3\0\0\0\0\0\0\0older...newer...record"
    assert entry.pack() == data
    assert Entry.unpack(data, "user 'u'") == entry


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (slice(20, None), b""),
        (slice(28, None), b""),
        (slice(0, 1), b"c"),
        (slice(4, 5), b"\2"),
        (slice(6, 8), b"\xff\xff"),
        (slice(6, 8), bytes([TOKENS_KEPT + 1, 0])),
    ],
    ids=["shorter than a head", "shorter than its tokens", "magic", "version", "count", "tokens"],
)
def test_what_is_no_entry_is_refused(place: slice, value: bytes, url: str, opened: Open):
    data = bytearray(Entry(bytes(8 * TOKENS_KEPT), 3, (token_of("x"),)).pack())
    data[place] = value
    store = opened(url)
    store._put([KeyedWrite("user:u", None, bytes(data))])
    with pytest.raises(RecordError, match="of user 'u' is "):
        store.read(["u"])


def test_tokens_tell_parts_apart_and_only_the_last_are_kept():
    assert token_of("ab", "c") != token_of("a", "bc")
    assert token_of("ab", b"c") == token_of("ab", "c")
    entry = Entry(b"")
    for i in range(TOKENS_KEPT + 3):
        entry = entry.followed_by(b"", 2, token_of(str(i)))
    assert entry.events == 2 * (TOKENS_KEPT + 3)
    assert entry.tokens == tuple(token_of(str(i)) for i in range(3, TOKENS_KEPT + 3))
    assert entry.followed_by(b"", 0, None).tokens == entry.tokens

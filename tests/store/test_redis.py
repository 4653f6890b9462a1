"""What only a store on another machine has: it goes away and comes back."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest
from ckv_testing.servers import RedisServer, free_port

from ckv_export.errors import MissingDependency, StoreError
from ckv_export.store import Change, Entry, Kept, open_store
from ckv_export.store import redis as redis_store


def test_killed_and_restarted_it_has_every_acknowledged_write(tmp_path: Path):
    with RedisServer(tmp_path) as server, open_store(server.url) as store:
        entry = Entry(b"before")
        assert store.write([Change("u", entry)]) == [True]
        server.kill()
        start = time.monotonic()
        for call in (lambda: store.read(["u"]), lambda: store.write([Change("v", entry)])):
            with pytest.raises(
                StoreError, match=rf"redis://127.0.0.1:{server.port}/0 can't be used"
            ):
                call()
        assert time.monotonic() - start < 10
        server.start()
        assert store.read(["u"]) == [entry]
        assert store.write([Change("u", Entry(b"after"), entry)]) == [True]


@pytest.mark.parametrize("kind", ["redis", "rediss"])
def test_nobody_there_is_an_error_without_the_password(kind: str):
    with pytest.raises(StoreError) as caught:
        open_store(f"{kind}://me:secret@127.0.0.1:{free_port()}/0")
    assert "secret" not in str(caught.value)
    assert "refused" in str(caught.value)
    assert "write" not in str(caught.value), "nothing was under way"


def test_a_socket_of_this_machine_is_an_address(tmp_path: Path):
    with tempfile.TemporaryDirectory() as short:  # a socket's name has 107 bytes at most
        url = f"unix://{short}/socket"
        with pytest.raises(StoreError, match=rf"{url} can't be used.*No such file"):
            open_store(url)
        server = RedisServer(tmp_path, "--unixsocket", f"{short}/socket")
        with server, open_store(f"{url}?db=3&prefix=p") as store:
            assert store.write([Change("u", Entry(b"x"))]) == [True]
            client = server.client()
            client.select(3)
            assert client.keys() == [b"p:user:u"]


def test_a_closed_store_holds_no_connection(redis_server: RedisServer):
    def connected() -> bool:
        return any(c["name"] == "holder" for c in redis_server.client().client_list())

    store = open_store(f"{redis_server.url}?client_name=holder")
    assert connected()
    store.close()
    assert not connected()


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("redis", MissingDependency, r"pip install .*redis"),
        ("ssl", StoreError, "the package redis can't be loaded: no ssl"),
    ],
)
def test_a_client_that_is_missing_is_told_from_one_that_is_broken(
    monkeypatch: pytest.MonkeyPatch, name: str, error: type, says: str
):
    def failing(module: str) -> None:
        assert module == "redis"
        raise ImportError(f"no {name}", name=name)

    monkeypatch.setattr(redis_store.importlib, "import_module", failing)
    with pytest.raises(error, match=says):
        open_store("redis://127.0.0.1:1/0")


@pytest.mark.parametrize(("option", "seconds"), [("", 2), ("?timeout=0.5", 0.5)])
def test_a_call_takes_as_long_as_the_address_says(
    redis_server: RedisServer, option: str, seconds: float
):
    with open_store(f"{redis_server.url}{option}") as store:
        assert store._client.get_connection_kwargs()["socket_timeout"] == seconds  # type: ignore[attr-defined]


def test_a_server_that_hangs_is_an_error_in_time(redis_server: RedisServer):
    with open_store(f"{redis_server.url}?timeout=0.2") as store:
        redis_server.hang()
        start = time.monotonic()
        with pytest.raises(StoreError, match="Timeout"):
            store.read(["u"])
        assert time.monotonic() - start < 2, "as long as without the option"
        redis_server.go_on()


def test_a_write_is_sent_once_whatever_the_address_says(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    """Sent again by the client it would find itself, and be reported as somebody else's."""
    import redis

    disconnect = redis.Connection.disconnect

    def and_the_server_goes_on(connection: redis.Connection, *args: object) -> None:
        redis_server.go_on()
        disconnect(connection, *args)

    with open_store(f"{redis_server.url}?timeout=0.2&retry_on_timeout=true") as store:
        store.delete(["once"])
        monkeypatch.setattr(redis.Connection, "disconnect", and_the_server_goes_on)
        redis_server.hang()
        with pytest.raises(StoreError, match="may or may not have happened"):
            store.write([Change("once", Entry(b"x"))])
        assert store.read(["once"]) != [None]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("tll=3", "unexpected keyword argument 'tll'"),
        ("db=x", "Invalid value for .db."),
        ("socket_keepalive_options=1", "no attribute"),
    ],
)
def test_an_option_that_redis_does_not_know_is_one_sentence(
    redis_server: RedisServer, option: str, says: str
):
    with pytest.raises(StoreError, match=f"{redis_server.url} is no address .*{says}"):
        open_store(f"{redis_server.url}?{option}")


def test_a_full_server_is_an_error(redis_server: RedisServer):
    client = redis_server.client()
    with open_store(redis_server.url) as store:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(StoreError, match="maxmemory"):
                store.write([Change("u", Entry(b"x"), force=True)])
        finally:
            client.config_set("maxmemory", 0)


def test_what_a_server_drops_for_memory_is_counted(redis_server: RedisServer):
    client = redis_server.client()
    with open_store(redis_server.url) as store:
        store.write([Change("u", Entry(b"x"), force=True)])
        kept = client.dbsize()
        client.config_set("maxmemory-policy", "allkeys-random")
        client.config_set("maxmemory", 1)
        try:
            assert store.read(["u"]) == [None]
            assert store.evictions() == kept
        finally:
            client.config_set("maxmemory", 0)
            client.config_set("maxmemory-policy", "noeviction")


def test_a_long_record_is_not_sent_again_nor_stored_twice_as_large(redis_server: RedisServer):
    client = redis_server.client()
    record = b"0123456789" * 2000
    with open_store(redis_server.url) as store:
        entry = Entry(record)
        store.write([Change("long", entry, force=True)])
        before = client.info("stats")["total_net_input_bytes"]
        for _ in range(20):
            grown = entry.followed_by(entry.record[10:] + b"0123456789", 1, None)
            kept = Kept(10, 0, len(record) - 10)
            assert store.write([Change("long", grown, entry, kept=kept)]) == [True]
            entry = grown
        sent = client.info("stats")["total_net_input_bytes"] - before
        assert store.read(["long"]) == [entry]
        assert sent < 20 * len(record) / 10
        assert client.memory_usage("ckv:user:long") < 1.3 * len(record)

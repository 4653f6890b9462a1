"""What only a store on another machine has: it goes away and comes back."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest
from ckv_testing.servers import RedisServer, free_port

from ckv_export.errors import StoreError
from ckv_export.store import Change, Entry, Kept, open_store


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


def test_nobody_there_is_an_error_without_the_password():
    with pytest.raises(StoreError) as caught:
        open_store(f"redis://me:secret@127.0.0.1:{free_port()}/0")
    assert "secret" not in str(caught.value)
    assert "refused" in str(caught.value)


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


def test_a_server_that_hangs_is_an_error_in_time(redis_server: RedisServer):
    with open_store(f"{redis_server.url}?timeout=0.2") as store:
        redis_server.client().client_pause(1500)
        start = time.monotonic()
        with pytest.raises(StoreError, match="Timeout"):
            store.read(["u"])
        assert time.monotonic() - start < 1.2


def test_a_full_server_is_an_error(redis_server: RedisServer):
    client = redis_server.client()
    with open_store(redis_server.url) as store:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(StoreError, match="maxmemory"):
                store.write([Change("u", Entry(b"x"))])
        finally:
            client.config_set("maxmemory", 0)


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

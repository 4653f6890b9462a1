"""What only a store in one file has: its locks, its disk, a process killed while it writes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.writers import write_for_ever

from ckv_export.errors import StoreError
from ckv_export.store import Change, Entry, open_store


def test_a_writer_killed_at_any_moment_leaves_whole_records(
    tmp_path: Path, rng: np.random.Generator
):
    url = f"sqlite:///{tmp_path / 'users.db'}"
    context = multiprocessing.get_context("spawn")
    last = -1
    for _ in range(3):
        ready = context.Event()
        writer = context.Process(target=write_for_ever, args=(url, ready))
        writer.start()
        assert ready.wait(60)
        time.sleep(float(rng.uniform(0.0, 0.03)))
        writer.kill()
        writer.join()
        with open_store(url) as store:
            one, two = store.read(["u", "v"])
            assert one is not None
            assert two is not None
            assert one.record == two.record == str(one.events).encode() * 3000
            assert one.events > 3 != last
            last = one.events
            store.write([Change("u", Entry(b"after"), one)])


def test_a_place_that_can_not_be_a_file_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="unable to open"):
        open_store(f"sqlite:///{tmp_path}/not/there.db")
    (tmp_path / "junk.db").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        open_store(f"sqlite:///{tmp_path}/junk.db")


def test_a_full_disk_is_an_error_and_harms_nothing(tmp_path: Path):
    if not shutil.which("sh") or not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    store = open_store(f"sqlite:///{tmp_path / 'users.db'}")
    store.write([Change("u", Entry(b"x"))])
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]  # type: ignore[attr-defined]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="database or disk is full"):
        store.write([Change("v", Entry(b"y" * 100_000))])
    assert store.read(["u", "v"])[1] is None
    store.close()


def test_readers_never_wait_and_writers_only_so_long(tmp_path: Path):
    path = tmp_path / "users.db"
    with open_store(f"sqlite:///{path}?timeout=0.2") as store:
        entry = Entry(b"x")
        store.write([Change("u", entry)])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        assert store.read(["u"]) == [entry]
        with pytest.raises(StoreError, match="locked"):
            store.write([Change("u", Entry(b"y"), entry)])
        other.close()
        assert store.write([Change("u", Entry(b"y"), entry)]) == [True]
    assert [each.name for each in tmp_path.iterdir()] == ["users.db"]  # all of it in one file


@pytest.mark.parametrize(
    ("option", "pragma", "value"),
    [
        ("", "synchronous", 1),
        ("?synchronous=full", "synchronous", 2),
        ("", "busy_timeout", 10_000),
        ("?timeout=0.25", "busy_timeout", 250),
    ],
)
def test_what_a_power_cut_may_cost_and_a_write_may_wait_is_what_the_address_says(
    option: str, pragma: str, value: int, tmp_path: Path
):
    with open_store(f"sqlite:///{tmp_path / 'users.db'}{option}") as store:
        connection = store._connection  # type: ignore[attr-defined]
        assert connection.execute(f"PRAGMA {pragma}").fetchone() == (value,)


def test_a_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with open_store("sqlite:///users.db"):
        assert (tmp_path / "users.db").is_file()


def test_a_path_may_have_accents_where_python_takes_ascii_alone(tmp_path: Path):
    """So does the one in Triton's backend."""
    program = """
import sys
from ckv_export.store import open_store
assert sys.getfilesystemencoding() != "utf-8"
open_store("sqlite:///\\u00e9.db")
"""
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | ascii_alone, check=True
    )
    assert (tmp_path / "\N{LATIN SMALL LETTER E WITH ACUTE}.db").is_file()


def test_a_write_that_fails_halfway_leaves_nothing_and_blocks_nobody(tmp_path: Path):
    with open_store(f"sqlite:///{tmp_path / 'users.db'}") as store:
        with pytest.raises(UnicodeEncodeError):
            store.write([Change("u", Entry(b"x")), Change("\ud800", Entry(b"x"))])
        assert store.read(["u"]) == [None]
        assert store.write([Change("u", Entry(b"x"))]) == [True]

"""Many publish one bundle at once, and others look on."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import pytest
from ckv_testing.publishing import fill

from ckv_export.deploy import exchange as exchange_module
from ckv_export.deploy.exchange import exchange
from ckv_export.deploy.publish import staged
from ckv_export.manifest import FILE_NAME

pytestmark = pytest.mark.usefixtures("plain_signals")


def test_in_a_thread_where_signals_can_not_be_handled(old: Path):
    def work() -> None:
        with staged(old) as folder:
            fill(folder, "new")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (old / "graph").read_text() == "new"


def test_names_do_not_collide(tmp_path: Path):
    """Two of one name at a time: each has its own folder, and the last one to end wins."""
    target = tmp_path / "out" / "name"
    with staged(target) as first:
        fill(first, "first")
        with staged(target) as second:
            assert first != second
            fill(second, "second")
        assert (target / "graph").read_text() == "second"
    assert (target / "graph").read_text() == "first"
    assert [p.name for p in target.parent.iterdir()] == ["name"]


def publish_often(target: Path, content: str, times: int) -> None:
    for _ in range(times):
        with staged(target) as folder:
            fill(folder, content)


def test_many_programs_at_once(old: Path):
    """Four processes replace one bundle again and again: it is always one of theirs, whole."""
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=publish_often, args=(old, f"worker {n}", 25)) for n in range(4)
    ]
    for worker in workers:
        worker.start()
    looks = 0
    while any(worker.is_alive() for worker in workers):
        folder = os.open(old, os.O_RDONLY | os.O_DIRECTORY)  # never fails: it is always there
        os.close(folder)
        looks += 1
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert looks > 0
    assert (old / "graph").read_text() == (old / FILE_NAME).read_text()
    assert {p.name for p in old.parent.iterdir()} == {"name", "neighbour", ".hidden"}


def test_who_looks_on_sees_the_old_or_the_new(old: Path):
    """Never neither, and never a mixture, in the one folder that was opened."""
    seen: set[str] = set()
    stop = threading.Event()
    problems: list[str] = []

    def look() -> None:
        while not stop.is_set():
            try:
                opened = os.open(old, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                problems.append("neither the old nor the new one was there")
                return
            try:
                texts = []
                for name in (FILE_NAME, "graph"):
                    with open(os.open(name, os.O_RDONLY, dir_fd=opened)) as file:  # noqa: PTH123
                        texts.append(file.read())
                if texts[0] != texts[1]:
                    problems.append(f"a mixture: {texts}")
                seen.add(texts[0])
            except FileNotFoundError:
                pass  # the old one went away after it was opened: what was open is not in use
            finally:
                os.close(opened)

    if not exchange_module._in_one_step(old, old.parent / "neighbour"):
        pytest.skip("this file system can't exchange two names in one step")
    exchange(old, old.parent / "neighbour")
    watcher = threading.Thread(target=look)
    watcher.start()
    publish_often(old, "one", 100)
    publish_often(old, "two", 100)
    stop.set()
    watcher.join()
    assert problems == []
    assert seen

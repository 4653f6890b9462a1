"""A store filled in bulk holds what the reference says, and serves."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.filling import filled, quiet, records
from ckv_testing.histories import clear_users, some_users, write_npz, write_parquet
from ckv_testing.serving import Shop, User, check_record

from ckv_export.bulk import encode, fill, histories
from ckv_export.bulk.fill import Filler, FillOptions, Tally, fill_store
from ckv_export.cache.item_table import load_item_table
from ckv_export.cache.record import RecordLayout, count, decode
from ckv_export.cli.main import main
from ckv_export.parity.tolerances import TOLERANCES
from ckv_export.serving import Answer, Request, Scorer, ScorerOptions, in_process
from ckv_export.store import Change, Entry, open_store
from ckv_export.store.base import KeyedWrite

pytest.importorskip("pyarrow", reason="the package pyarrow is not installed")

pytestmark = pytest.mark.usefixtures("one_thread")

SCORE = 2 * TOLERANCES["score"].absolute


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_records_are_the_reference_s_and_serve(
    shop: Shop, kind: str, tmp_path: Path, rng: np.random.Generator
):
    users = clear_users(shop, 60, rng)
    events, store = tmp_path / f"histories.{kind}", f"sqlite:///{tmp_path / 'users.db'}"
    if kind == "parquet":
        write_parquet(events, shop, users, rows=25)
    else:
        write_npz(events, shop, users)
    tally = filled(shop, events, store)
    lonely = sum(user.count == 0 for user in users.values())
    assert (tally.users, tally.empty, tally.written) == (60, lonely, 60 - lonely)
    assert tally.events == sum(user.count for user in users.values())
    layout = RecordLayout.of(shop.manifest, "float32")
    found = records(shop, store, users)
    assert tally.bytes == sum(len(record) for record in found.values() if record)
    for name, user in users.items():
        record = found[name]
        assert (record is None) == (user.count == 0)
        if record is not None:
            check_record(shop, user, layout, record)
            assert count(layout, record) == min(user.count, shop.spec.max_len)
    serves(shop, store, users, rng)


def serves(shop: Shop, store: str, users: dict[str, User], rng: np.random.Generator) -> None:
    """Every user, with a new event, scores as the reference says."""
    graph = shop.manifest.graph_names[-1]
    table = load_item_table(shop.folder) if shop.manifest.item_table else None
    run = in_process(shop.folder / f"{graph}.onnx", shop.manifest.graph(graph), table)
    asked, wanted = [], []
    for name, user in users.items():
        new = shop.next(user, 1, rng)
        shop.grow(user, new)
        offered = shop.offer(user, 3, rng)
        asked.append(Request(name, shop.inputs(user, new, offered)))
        wanted.append((shop.scores(user, offered), user.count))
    with open_store(store) as opened:
        answers = Scorer(shop.manifest, opened, run, ScorerOptions("float32")).score(asked)
    for answer, (scores, events) in zip(answers, wanted, strict=True):
        assert isinstance(answer, Answer), answer
        np.testing.assert_allclose(answer.scores, scores, rtol=0, atol=SCORE)
        assert answer.events == events


@pytest.mark.parametrize(
    ("form", "most", "wanted"),
    [
        ("hstu", 65536, [(64, 32), (64, 64)]),
        ("hstu", 2048, [(64, 32), (32, 64), (32, 64)]),
        ("hstu", 20, [(1, 32)] * 64 + [(1, 64)] * 64),  # one user is a call, however long
        ("sim", 65536, [(64, 4), (64, 4)]),  # a window's events alone
        ("items", 65536, []),  # a record is ids alone
    ],
)
def test_calls_are_full_and_of_users_alike(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch, form: str, most: int, wanted: list[tuple[int, int]],
):  # fmt: skip
    monkeypatch.setattr(encode, "_EVENTS_AT_ONCE", most)
    shop = shops(form)
    users = some_users(shop, 130, rng, longest=64)
    write_parquet(tmp_path / "h.parquet", shop, users, rows=1000)
    calls: list[tuple[int, int]] = []
    infer = fill.OnnxRuntimeRunner.infer

    def counted(self: object, feeds: dict[str, np.ndarray]) -> object:
        calls.append(feeds["event_mask"].shape)  # type: ignore[arg-type]
        return infer(self, feeds)  # type: ignore[arg-type]

    monkeypatch.setattr(fill.OnnxRuntimeRunner, "infer", counted)
    filled(shop, tmp_path / "h.parquet", f"sqlite:///{tmp_path / 'u.db'}")
    assert calls == wanted


def test_bad_input_is_one_sentence(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    shop, events = shops("items"), tmp_path / "h.parquet"
    write_parquet(events, shop, some_users(shop, 3, rng), rows=3)
    twice = tmp_path / "twice.npz"
    ids, mask = np.ones((2, 1), np.int32), np.ones((2, 1), np.bool_)
    np.savez(twice, user_id=np.array(["a", "a"]), event_item_id=ids, event_mask=mask)
    good = {"--events": str(events), "--store": f"sqlite:///{tmp_path / 'u.db'}"}
    for change, says in [
        ({"--store": "users.db"}, "must be sqlite:///FILE or redis://"),
        ({"--store": f"sqlite:///{tmp_path}/not/there.db"}, "unable to open"),
        ({"--store": "redis://127.0.0.1:1/0"}, "can't be used"),
        ({"--user-column": "user"}, "did you mean 'user_id'?"),
        ({"--user-dtype": "fp64"}, "invalid choice"),
        ({"--max-events": "0"}, "at least 1"),
        ({"--max-events": "13"}, "--max-events is at most 12"),
        ({"--events": str(twice)}, "two histories of user 'a'"),
    ]:
        words = [f"{flag}={value}" for flag, value in (good | change).items()]
        assert main(["prefill", str(shop.folder), *words]) == 2
        message = capsys.readouterr().err
        assert len(message.splitlines()) == 1, message
        assert says in message
        assert not (tmp_path / "u.db").exists(), "a store before it was needed"


@pytest.mark.parametrize(("most", "kept"), [(5, 5), (None, 9)])
def test_the_newest_are_kept_and_no_more_than_are_scored(
    shops: Callable[[str], Shop],
    tmp_path: Path,
    rng: np.random.Generator,
    most: int | None,
    kept: int,
):
    shop, store = shops("sim"), f"sqlite:///{tmp_path / 'users.db'}"
    users = {"u": shop.user(12, rng)}
    write_parquet(tmp_path / "h.parquet", shop, users, rows=10)
    filled(shop, tmp_path / "h.parquet", store, max_events=most)
    record = records(shop, store, users)["u"]
    assert record is not None
    stored = decode(RecordLayout.of(shop.manifest, "float32"), record)
    np.testing.assert_array_equal(stored["history_item_id"], users["u"].events["item_id"][-kept:])


# -- again, and after a crash


def test_what_is_done_is_not_done_again(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator
):
    shop, store = shops("items"), f"sqlite:///{tmp_path / 'users.db'}"
    events = tmp_path / "h.parquet"
    users = some_users(shop, 30, rng)
    write_parquet(events, shop, users, rows=10)
    first = filled(shop, events, store)
    before = records(shop, store, users)
    assert filled(shop, events, store) == Tally(users=30, skipped=30)
    again = filled(shop, events, store, restart=True)
    assert (again.written, again.kept) == (0, first.written)
    # A server has appended to one; three others it would refuse.
    names = [user for user, record in before.items() if record]
    with open_store(store) as opened:
        appended, damaged = (before[name] or b"" for name in names[:2])
        for name, entry in [
            (names[0], Entry(appended, 99)),
            (names[1], Entry(damaged[:-1] + bytes([damaged[-1] ^ 1]), 1)),
            (names[2], Entry(b"of another model", 1)),
        ]:
            opened.write([Change(name, entry, force=True)])
        opened._put([KeyedWrite(f"user:{names[3]}", None, b"no entry")])
    again = filled(shop, events, store, restart=True)
    assert (again.written, again.kept) == (3, first.written - 3)
    assert records(shop, store, users) == before
    with open_store(store) as opened:
        assert opened.read(names[:1])[0].events == 99  # type: ignore[union-attr]
    again = filled(shop, events, store, replace=True)
    assert (again.written, again.kept) == (first.written, 0)
    # The same file of another content is another job.
    grown = users | {"new": shop.user(3, rng)}
    write_parquet(events, shop, grown, rows=10)
    assert filled(shop, events, store).written == 1


def test_who_goes_back_to_an_earlier_model_begins_again(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator
):
    """The later one's records have taken the place of those that were once finished."""
    shop, store = shops("sim"), f"sqlite:///{tmp_path / 'users.db'}"
    users, events = some_users(shop, 6, rng), tmp_path / "h.parquet"
    write_parquet(events, shop, users, rows=2)
    first, before = filled(shop, events, store), records(shop, store, users)
    later = FillOptions(shop.folder, events, store, user_dtype="int8", threads=1)
    assert fill_store(later, quiet).written == first.written
    again = filled(shop, events, store)
    assert (again.written, again.skipped) == (first.written, 0)
    assert records(shop, store, users) == before


def test_ids_of_one_meaning_outlive_a_model(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator
):
    """Users of a bundle with an item table are not filled again for a retrained one."""
    shop, store = shops("items"), f"sqlite:///{tmp_path / 'users.db'}"
    users, events = some_users(shop, 6, rng), tmp_path / "h.parquet"
    write_parquet(events, shop, users, rows=4)

    def version(entries: str, **ids: str) -> Shop:
        folder = shutil.copytree(shop.folder, tmp_path / f"{entries}{len(ids)}")
        prints = {**shop.manifest.fingerprints, "entries": entries * 64, **ids}
        manifest = dataclasses.replace(shop.manifest, fingerprints=prints)
        manifest.write(folder)
        return dataclasses.replace(shop, folder=folder, manifest=manifest)

    named = {"ids": "1d" * 32}
    first = filled(version("a", **named), events, store)
    assert first.written
    later = version("b", **named)
    assert filled(later, events, store).skipped == len(users)
    serves(later, store, users, rng)
    assert filled(version("b"), events, store).written == first.written


def test_a_job_is_named_by_all_that_decides_what_is_written(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator
):
    shop, events = shops("sim"), tmp_path / "h.npz"
    write_npz(events, shop, some_users(shop, 3, rng))
    arrays = dict(np.load(events))
    np.savez(events, **arrays, name=arrays["user_id"])
    other = shutil.copytree(shop.folder, tmp_path / "other")
    dataclasses.replace(shop.manifest, fingerprint="0" * 64).write(other)

    def job(**changes: object) -> str:
        options = FillOptions(shop.folder, events, f"sqlite:///{tmp_path / 'users.db'}")
        filler = Filler(dataclasses.replace(options, **changes))  # type: ignore[arg-type]
        filler.close()
        return filler.job

    jobs = [job(), job(max_events=3), job(user_dtype="int8"), job(column="name")]
    jobs += [job(replace=True), job(bundle=other)]
    assert len(set(jobs)) == len(jobs)
    assert job(threads=1, restart=True, store=f"sqlite:///{tmp_path / 'b.db'}") == job()


def test_a_group_that_was_not_finished_is_begun_again(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(histories, "PIECE", 4)
    shop, events = shops("items"), tmp_path / "h.parquet"
    users, store = {f"u{i}": shop.user(2, rng) for i in range(10)}, f"sqlite:///{tmp_path / 'u.db'}"
    write_parquet(events, shop, users, rows=10)
    options = FillOptions(shop.folder, events, store, user_dtype="float32", threads=1)

    def stopped(total: Tally, of: int) -> None:
        assert of == 10
        if total.users > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_store(options, stopped)
    rest = filled(shop, events, store)
    assert (rest.written, rest.kept, rest.skipped) == (2, 8, 0)
    assert None not in records(shop, store, users).values()


def test_what_a_server_appends_meanwhile_is_not_lost(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    shop, events = shops("items"), tmp_path / "h.parquet"
    users, store = {name: shop.user(2, rng) for name in "abc"}, f"sqlite:///{tmp_path / 'u.db'}"
    write_parquet(events, shop, users, rows=10)
    made = fill.Encoder.encode

    def encoded(self: fill.Encoder, histories: list) -> list[bytes]:
        with open_store(store) as opened:
            opened.write([Change("b", Entry(b"of a server", 3))])
        return made(self, histories)

    monkeypatch.setattr(fill.Encoder, "encode", encoded)
    tally = filled(shop, events, store)
    found = records(shop, store, users)
    assert found["b"] == b"of a server"
    assert (tally.written, tally.kept) == (2, 1)
    assert tally.bytes == len(found["a"] or b"") + len(found["c"] or b"")


def test_a_file_changed_in_place_is_another_file(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator
):
    """As many bytes, the same end, no statistics: only what a user did is another thing."""
    pa = pytest.importorskip("pyarrow")
    shop, store = shops("items"), f"sqlite:///{tmp_path / 'users.db'}"
    events, users = tmp_path / "h.parquet", some_users(shop, 3, rng)
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    last, sizes, ends = np.frombuffer(rng.bytes(2**21), "V1024").tolist(), set(), set()
    for _ in range(2):
        users["user 0"] = shop.user(5, rng)
        write_parquet(events, shop, users, rows=10)
        table = pa.parquet.read_table(events)
        table = pa.table({n: table[n] for n in table.column_names} | {"note": [last] * 3})
        pa.parquet.write_table(table, events, **plain)
        sizes.add(events.stat().st_size)
        ends.add(events.read_bytes()[-(2**20) :])
        assert filled(shop, events, store, replace=True).skipped == 0
        made = records(shop, store, users)["user 0"]
        assert made is not None
        check_record(shop, users["user 0"], RecordLayout.of(shop.manifest, "float32"), made)
    assert (len(sizes), len(ends)) == (1, 1)


def test_killed_at_any_moment_and_run_again_the_store_is_the_same(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator
):
    shop, events = shops("hstu"), tmp_path / "h.parquet"
    users = some_users(shop, 4000, rng, longest=60)
    write_parquet(events, shop, users, rows=100)
    straight, killed = (f"sqlite:///{tmp_path / name}.db" for name in ("straight", "killed"))
    filled(shop, events, straight)
    program = f"""
from pathlib import Path
from ckv_export.bulk.fill import FillOptions, fill_store
options = FillOptions(Path({str(shop.folder)!r}), Path({str(events)!r}), {killed!r},
                      user_dtype="float32", threads=1)
fill_store(options, lambda total, users: print(total.users, flush=True))
"""
    kills = 0
    for _ in range(3):
        run = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        assert run.stdout is not None
        assert int(run.stdout.readline()) >= 100
        time.sleep(float(rng.uniform(0, 0.1)))
        kills += run.poll() is None
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert kills
    rest = filled(shop, events, killed)
    assert 0 < rest.skipped < rest.users == 4000
    assert records(shop, killed, users) == records(shop, straight, users)


def test_an_interrupt_says_how_to_go_on(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    shop, events = shops("items"), tmp_path / "h.parquet"
    write_parquet(events, shop, some_users(shop, 9, rng), rows=3)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fill.Filler, "fill", interrupted)
    store = f"sqlite:///{tmp_path / 'u.db'}"
    assert main(["prefill", str(shop.folder), f"--events={events}", f"--store={store}"]) == 2
    assert "the same command goes on from there" in capsys.readouterr().err


# -- a cluster


@pytest.mark.slow
def test_ray_fills_the_same_store(
    shops: Callable[[str], Shop], tmp_path: Path, rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    pytest.importorskip("ray.data", reason="the package ray[data] is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    shop, events = shops("sim"), tmp_path / "h.parquet"
    users = some_users(shop, 50, rng)
    write_parquet(events, shop, users, rows=10)
    straight, spread = (f"sqlite:///{tmp_path / name}.db" for name in ("straight", "spread"))
    filled(shop, events, straight)
    command = ["prefill", str(shop.folder), f"--events={events}", f"--store={spread}"]
    assert main([*command, "--user-dtype=fp32", "--threads=1", "--ray", "--workers=2"]) == 0
    assert records(shop, spread, users) == records(shop, straight, users)
    # The groups are known as done whoever did them.
    assert filled(shop, events, spread) == Tally(users=50, skipped=50)

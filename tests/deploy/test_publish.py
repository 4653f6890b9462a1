"""A bundle appears whole or not at all, whatever happens."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ckv_testing.publishing import HANDLERS, Stop, either_exchange, fill, listing, stop

from ckv_export.deploy import publish
from ckv_export.deploy.publish import amended, check_target, require_outside, staged
from ckv_export.errors import BundleError
from ckv_export.manifest import FILE_NAME

pytestmark = pytest.mark.usefixtures("plain_signals")

reaches_pathlib = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="pathlib looks functions of os up only from Python 3.11 on"
)


def test_the_body_s_folder_becomes_the_target(tmp_path: Path):
    target = tmp_path / "made" / "for" / "it"
    with staged(target) as folder:
        assert folder.parent == target.parent
        assert folder.name.startswith(".")
        assert not target.exists()
        fill(folder, "new")
    assert listing(tmp_path / "made" / "for").keys() == {"it", f"it/{FILE_NAME}", "it/graph"}
    assert target.stat().st_mode & 0o777 == 0o755


@either_exchange
def test_a_bundle_is_replaced_whole(old: Path):
    (old / "stale").write_text("of the old one")
    neighbours = {n: e for n, e in listing(old.parent).items() if not n.startswith("name")}
    with staged(old) as folder:
        fill(folder, "new")
    after = listing(old.parent)
    assert {p.name for p in old.iterdir()} == {FILE_NAME, "graph"}
    assert (old / "graph").read_text() == "new"
    assert {n: e for n, e in after.items() if not n.startswith("name")} == neighbours


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, Stop, MemoryError])
def test_whatever_is_raised_all_is_as_before(old: Path, error: type[BaseException]):
    before = listing(old.parent)
    with pytest.raises(error), staged(old) as folder:  # noqa: PT012
        fill(folder / "deep" / "er", "new")
        raise error
    assert listing(old.parent) == before


def test_folders_made_for_it_go_again(tmp_path: Path):
    (tmp_path / "there").mkdir()
    with pytest.raises(Stop), staged(tmp_path / "there" / "a" / "b" / "c") as folder:  # noqa: PT012
        fill(folder, "new")
        raise Stop
    assert listing(tmp_path).keys() == {"there"}


def test_a_folder_made_for_it_stays_if_another_moved_in(tmp_path: Path):
    with pytest.raises(Stop), staged(tmp_path / "a" / "b" / "c"):  # noqa: PT012
        (tmp_path / "a" / "theirs").write_text("of another program")
        raise Stop
    assert listing(tmp_path).keys() == {"a", "a/theirs"}


@reaches_pathlib
def test_a_parent_that_can_not_be_made(tmp_path: Path, monkeypatch):
    """The disk fills up while the parents are made: those that were made go again."""
    real = os.mkdir

    def mkdir(path, *rest):
        if Path(path).name == "c":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *rest)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(OSError, match="No space"), staged(tmp_path / "a" / "b" / "c" / "name"):
        pass
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("step", ["exchange", "rename"])
def test_a_move_that_fails(old: Path, tmp_path: Path, monkeypatch, step: str):
    """The system refuses at the last moment."""

    def refuse(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    if step == "exchange":
        monkeypatch.setattr(publish, "exchange", refuse)
        target = old
    else:
        monkeypatch.setattr(Path, "rename", refuse)
        target = tmp_path / "new" / "name"
    before = listing(tmp_path)
    with pytest.raises(OSError, match="Input/output"), staged(target) as folder:
        fill(folder, "new")
    assert listing(tmp_path) == before


class Interrupts:
    """While it is armed, a signal comes right after each call of some functions, as it can."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.armed, self.number = monkeypatch, False, signal.SIGINT
        self.came: set[str] = set()

    def after(self, owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*args, **options):
            result = real(*args, **options)
            if self.armed:
                self.came.add(name)
                os.kill(os.getpid(), self.number)
            return result

        self.monkeypatch.setattr(owner, name, call)


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupts]:
    made = Interrupts(monkeypatch)
    yield made
    made.armed = False


@reaches_pathlib
@either_exchange
@pytest.mark.parametrize("number", HANDLERS)
def test_an_interrupt_in_the_midst_of_the_move(
    old: Path, interrupts: Interrupts, request, number: signal.Signals
):
    """Too late: the new bundle is there whole, and the old one is not lost on the way."""
    signal.signal(number, stop)
    interrupts.number = number
    for owner, name in ((os, "rename"), (os, "mkdir"), (os, "unlink"), (os, "rmdir")):
        interrupts.after(owner, name)
    before = {n for n in listing(old.parent) if not n.startswith("name")}
    with staged(old) as folder:
        fill(folder, "new")
        interrupts.armed = True
    interrupts.armed = False
    assert interrupts.came >= {"unlink", "rmdir"}
    assert ("rename" in interrupts.came) == ("three steps" in request.node.name)
    assert (old / "graph").read_text() == "new"
    assert {n for n in listing(old.parent) if not n.startswith("name")} == before
    assert {n: signal.getsignal(n) for n in HANDLERS} == HANDLERS | {number: stop}


def test_a_handler_that_could_not_be_put_back_stays(old: Path, monkeypatch):
    """One that C code installed reads as None."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *given: pytest.fail(f"replaced {given}"))
    with staged(old) as folder:
        fill(folder, "new")
    assert (old / "graph").read_text() == "new"


def test_an_interrupt_in_the_midst_of_the_cleaning(old: Path, tmp_path: Path, interrupts):
    """The second Ctrl-C: what the first one left is cleaned up all the same."""
    for name in ("unlink", "rmdir"):
        interrupts.after(os, name)
    before = listing(tmp_path)
    for target in (old, tmp_path / "a" / "b" / "name"):
        with pytest.raises(Stop), staged(target) as folder:  # noqa: PT012
            fill(folder / "deep", "new")
            interrupts.armed = True
            raise Stop
        interrupts.armed = False
        assert interrupts.came == {"unlink", "rmdir"}
        assert listing(tmp_path) == before
    assert {n: signal.getsignal(n) for n in HANDLERS} == HANDLERS


def test_an_interrupt_while_the_body_runs(old: Path):
    before = listing(old.parent)
    with pytest.raises(Stop), staged(old) as folder:  # noqa: PT012
        fill(folder, "new")
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10**6):
            pass
    assert listing(old.parent) == before


@either_exchange
def test_a_link_stays_and_what_it_points_to_is_replaced(old: Path, tmp_path: Path):
    link = tmp_path / "current"
    link.symlink_to(old)
    with staged(link) as folder:
        fill(folder, "new")
    assert link.is_symlink()
    assert (old / "graph").read_text() == "new"
    assert {p.name for p in tmp_path.iterdir()} == {"out", "current"}


@either_exchange
def test_who_works_in_the_old_one_works_in_the_new_one(old: Path, monkeypatch: pytest.MonkeyPatch):
    """Relative paths go on naming what they named; where its folder is gone there is none."""
    (old / "engines").mkdir()
    monkeypatch.chdir(old / "engines")
    with amended(Path("..")) as folder:
        (folder / "graph").replace(folder / "engines" / "graph")
    assert Path("graph").read_text() == "old"
    with staged(Path("..")) as folder:
        fill(folder, "new")
    assert (old / "graph").read_text() == "new"
    with pytest.raises(FileNotFoundError):
        Path.cwd()


def test_amended_starts_from_what_is_there(old: Path):
    (old / "engines").mkdir(mode=0o700)
    (old / "engines" / "one").write_text("an engine")
    (old / "link").symlink_to("graph")
    before = listing(old)
    with amended(old) as folder:
        assert listing(folder) == before
        assert (folder / "graph").stat().st_ino == (old / "graph").stat().st_ino
        (folder / "engines" / "two").write_text("another")
        assert listing(old) == before
    assert listing(old) == before | {"engines/two": listing(old)["engines/two"]}
    assert (old / "engines" / "two").read_text() == "another"


def test_amended_copies_where_links_are_not_known(old: Path, monkeypatch):
    def link(*args: object, **options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    (old / "graph").chmod(0o640)
    before = listing(old)
    with pytest.raises(Stop), amended(old) as folder:  # noqa: PT012
        assert listing(folder) == before
        (folder / "graph").write_text("changed in place")
        raise Stop
    assert listing(old) == before


def test_amended_that_fails_leaves_the_bundle(old: Path):
    before = listing(old.parent)
    with pytest.raises(Stop), amended(old) as folder:  # noqa: PT012
        (folder / FILE_NAME).unlink()
        (folder / "graph").replace(folder / "other")
        raise Stop
    assert listing(old.parent) == before


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a/", ".a", "../a", "a/..", "./a"])
def test_names_of_targets(tmp_path: Path, name: str):
    with pytest.raises(BundleError, match="plain folder name"):
        check_target(tmp_path, name, force=True)


def test_a_name_that_is_no_text(tmp_path: Path):
    with pytest.raises(BundleError, match=r"must be UTF-8 text.*choose another --out or --name"):
        check_target(tmp_path, "a\udcff", force=True)


@pytest.mark.parametrize("name", ["a", "a b", "a.b", "ü", "-x", "a\\b", "~"])
def test_good_names_of_targets(tmp_path: Path, name: str):
    assert check_target(tmp_path / "new", name, force=False) == tmp_path / "new" / name
    assert listing(tmp_path) == {}


def test_targets_that_exist(old: Path):
    with pytest.raises(BundleError, match="--force"):
        check_target(old.parent, old.name, force=False)
    assert check_target(old.parent, old.name, force=True) == old
    (old / FILE_NAME).unlink()
    for force in (False, True):
        with pytest.raises(BundleError, match="never replaced"):
            check_target(old.parent, old.name, force=force)
    with pytest.raises(BundleError, match="is a file"):
        check_target(old / "graph", "name", force=True)


def test_a_bundle_is_not_put_into_a_bundle(old: Path):
    with pytest.raises(BundleError, match=rf"{old} is a bundle: give the folder that it lies in"):
        check_target(old, old.name, force=True)


def test_what_is_given_must_not_lie_in_what_is_replaced(old: Path, monkeypatch: pytest.MonkeyPatch):
    link = old.parent / "link"
    link.symlink_to(old)
    monkeypatch.chdir(old)
    for path in (old, old / "graph", Path("graph"), Path("new", "cache"), link / "graph"):
        for target in (old, link, Path("../name")):
            with pytest.raises(BundleError, match=f"^{path} lies in {target}, .* move it"):
                require_outside(target, None, Path("../neighbour/graph"), path)
    require_outside(old, None, old.parent, old.parent / "name2", Path("../neighbour"))

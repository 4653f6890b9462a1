"""What a command was asked to write is there whole, or what was there before."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ckv_export.cli.files import check_places, whole
from ckv_export.errors import InputError


def test_a_file_appears_when_it_is_written(tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text("before")
    with whole(path) as made:
        assert made.name == path.name
        made.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_halfway_changes_nothing(tmp_path: Path):
    path = tmp_path / "plot.png"
    path.write_text("before")

    def write() -> None:
        with whole(path) as made:
            made.write_text("half of")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        write()
    assert caught.value.filename == str(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_is_named(tmp_path: Path):
    path = tmp_path / "nowhere" / "report.json"
    with pytest.raises(OSError, match="No such file") as caught, whole(path) as made:
        made.write_text("x")
    assert caught.value.filename == str(path)


def test_a_folder_that_takes_no_files_is_told_before_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "elsewhere.json")
    monkeypatch.setattr("os.access", lambda place, mode: place != tmp_path)
    with pytest.raises(InputError, match=r"the folder .* of report\.json can't be written to"):
        check_places(None, tmp_path / "report.json")
    check_places(link, Path(os.devnull))


def test_two_results_are_not_written_to_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^r\.html is given for two results$"):
        check_places(tmp_path / "r.html", None, tmp_path / "r.json", Path("r.html"))
    check_places(tmp_path / "r.html", Path(os.devnull), None, Path(os.devnull))


def test_what_a_command_reads_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nor is anything put into a bundle, where it would pass for a file that was exported."""
    monkeypatch.chdir(tmp_path)
    bundle, run = tmp_path / "bundle", tmp_path / "run"
    for folder in (bundle / "engines", run):
        folder.mkdir(parents=True)
    (bundle / "manifest.json").touch()
    given = {"given": (None, bundle, run, Path("events.npz"))}
    for path in (tmp_path / "events.npz", Path("run/../events.npz")):
        with pytest.raises(InputError, match=r"events\.npz is read by this command"):
            check_places(path, **given)
    for path in (Path("bundle/parity.json"), bundle / "engines" / "report.html"):
        with pytest.raises(InputError, match=r"lies in the bundle .*, whose files are those that"):
            check_places(None, path, **given)
    check_places(run / "report.html", tmp_path / "bundle.json", Path("events.json"), **given)


def test_what_is_no_plain_file_is_never_replaced(tmp_path: Path):
    target, link = tmp_path / "target.xml", tmp_path / "link.xml"
    target.write_text("before")
    link.symlink_to(target)
    with whole(link) as made:
        made.write_text("after")
    assert link.is_symlink()
    assert target.read_text() == "after"
    with whole(Path(os.devnull)) as made:
        assert made == Path(os.devnull)

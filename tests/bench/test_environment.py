"""What a result says of where it came from: the command, the commit, the GPUs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ckv_export.bench import environment
from ckv_export.bench.environment import command, commit, gpus, resident_bytes


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a neighbour whose name begins as its own."""
    for name in ("work", "workshop"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("engines/model", "engines/model"),
        ("../shared/model.pt", "../shared/model.pt"),
        ("--sweep=history=10,100", "--sweep=history=10,100"),
        ("a / b", "a / b"),
        ("{here}/engines/model", "engines/model"),
        ("{here}/out/../model.pt", "model.pt"),
        ("{here}", "."),
        ("--json={here}/out/result.json", "--json=out/result.json"),
        ("{here}/a=b/c=d", "a=b/c=d"),
        ("--json={above}/result.json", "--json=result.json"),
        ("{above}/workshop/model.pt", "model.pt"),
        ("{here}/../model.pt", "model.pt"),
        ("/no/such folder/model.pt", "model.pt"),
        ("/no/such=folder/model.pt", "model.pt"),
        ("/no/such=/folder/model.pt", "model.pt"),
        ("/", "/"),
    ],
)
def test_paths_are_as_given_without_the_folders_of_a_machine(here: Path, word: str, says: str):
    word = word.format(here=here, above=here.parent)
    made = command([f"{here}/.venv/bin/ckv-export", "bench", word])
    assert shlex.split(made) == ["ckv-export", "bench", says]


def test_a_command_without_a_working_directory_is_told_too(here: Path):
    here.rmdir()
    assert command(["bench.py", "--json", f"{here}/a.json"]) == "bench.py --json a.json"


def test_the_command_that_runs_is_the_one_recorded(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ckv-export", "bench", f"{here.parent}/model"])
    assert environment.environment()["command"] == "ckv-export bench model"


# -- the commit


def git(folder: Path, *words: str) -> str:
    told = {
        f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    command = ["git", "-C", str(folder), *words]
    return subprocess.check_output(command, text=True, env={**os.environ, **told}).strip()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with one commit of the module, in a folder of its own."""
    module = tmp_path / "clone" / "package" / "environment.py"
    module.parent.mkdir(parents=True)
    module.write_text("first")
    git(tmp_path / "clone", "init", "-q")
    git(tmp_path / "clone", "add", ".")
    git(tmp_path / "clone", "commit", "-qm", "first")
    monkeypatch.setattr(environment, "__file__", str(module))
    return tmp_path / "clone"


def test_the_commit_says_whether_files_differ_from_it(clone: Path):
    head = git(clone, "rev-parse", "HEAD")
    assert len(head) == 40
    (clone / "notes").write_text("no part of it")
    assert commit() == head
    (clone / "package" / "environment.py").write_text("second")
    assert commit() == f"{head}+changes"


def test_a_package_installed_within_a_clone_is_not_of_its_commit(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    installed = clone / ".venv" / "environment.py"
    installed.parent.mkdir()
    installed.write_text("another project's")
    monkeypatch.setattr(environment, "__file__", str(installed))
    assert commit() == "unknown"
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "nowhere" / "environment.py"))
    assert commit() == "unknown"


# -- the machine


def program(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only program of that name there is."""
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_each_gpu_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = "NVIDIA H100 80GB HBM3, 570.86, 81559 MiB\\nNVIDIA L4, 570.86, 23034 MiB\\n"
    program(tmp_path, "nvidia-smi", f"printf '{lines}'", monkeypatch)
    assert gpus() == [
        {"name": "NVIDIA H100 80GB HBM3", "driver_version": "570.86", "memory.total": "81559 MiB"},
        {"name": "NVIDIA L4", "driver_version": "570.86", "memory.total": "23034 MiB"},
    ]


def test_without_a_driver_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program(tmp_path, "nvidia-smi", "echo no devices were found; exit 6", monkeypatch)
    assert gpus() == []
    (tmp_path / "nvidia-smi").unlink()
    assert gpus() == []


def test_resident_bytes_grow_with_what_is_touched():
    before = resident_bytes()
    held = bytearray(os.urandom(1)) * 2**26
    after = resident_bytes()
    if before is None or after is None:
        pytest.skip("only Linux says what is resident")
    assert 0.9 * len(held) < after - before < 2 * len(held)

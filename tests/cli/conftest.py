"""One real export for the whole session, and ways to run the command line on it.

Two thirds of an export are PyTorch's exporter. Whoever isn't testing that takes the graphs of the
session's one export (`same_graphs`): the model is the same, so the graphs are.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from ckv_testing.exports import one_thread
from ckv_testing.workers import common_folder, made_once

from ckv_export.checkpoint.load import Checkpoint, load_checkpoint
from ckv_export.cli.main import main
from ckv_export.deploy import bundle as deploy_bundle

HERE = Path(__file__).resolve().parent
PREFIX = "ckv-export: error: "
HELD = "<held>"
SECONDS = 120


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    def sentence(self, code: int = 2) -> str:
        """The one sentence that a refusal must be."""
        assert "Traceback" not in self.out + self.err
        assert self.code == code, self.out + self.err
        lines = self.err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith(PREFIX)
        return lines[0].removeprefix(PREFIX)


Cli = Callable[..., Result]
Tree = dict[str, tuple[Any, ...]] | None


def tree(folder: Path) -> Tree:
    """Every path below `folder`, hidden ones too, with kind, mode and bytes; None if it is not."""
    if not os.path.lexists(folder):
        return None
    if not folder.is_dir() or folder.is_symlink():
        return {".": _entry(folder)}
    found = {p.relative_to(folder).as_posix(): _entry(p) for p in folder.rglob("*")}
    return found | {".": _entry(folder)}


def _entry(path: Path) -> tuple[Any, ...]:
    mode = path.lstat().st_mode
    if path.is_symlink():
        return mode, str(path.readlink())
    if path.is_dir():
        return (mode,)
    return mode, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process."""

    def run(*words: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(cli: Cli) -> Callable[..., str]:
    """Run a command that must be refused: one sentence, exit code 2, `watched` as it was."""

    def run(*words: str | Path, watched: Path, says: tuple[str, ...] = ()) -> str:
        before = tree(watched)
        sentence = cli(*words).sentence()
        assert tree(watched) == before
        for part in says:
            assert part in sentence
        return sentence

    return run


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(name="tree")
def tree_function() -> Callable[[Path], Tree]:
    return tree


@pytest.fixture(scope="session")
def run_folder(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A writable copy of the recorded SIM run folder."""
    folder = tmp_path_factory.mktemp("checkpoint") / "sim_micro"
    folder.mkdir()
    for file in (samples / "sim_micro").iterdir():
        if not file.name.startswith("golden"):
            shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture(scope="session")
def checkpoint(run_folder: Path) -> Checkpoint:
    return load_checkpoint(run_folder)


@dataclass(frozen=True)
class Export:
    """A finished export: where, and what it printed."""

    bundle: Path
    printed: str


@pytest.fixture(scope="session")
def export(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The session's one real export, by the default verb, into a folder that was not there."""
    out = tmp_path_factory.mktemp("exported") / "not" / "there"
    with one_thread(), contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main([str(run_folder), "--out", str(out), "--name", "micro"])
    assert code == 0, printed.getvalue()
    return Export(out / "micro", printed.getvalue())


@pytest.fixture(scope="session")
def bundle(export: Export) -> Path:
    """The bundle of `export`; not to be changed."""
    return export.bundle


@pytest.fixture(scope="session")
def halved(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the same model in fp16, from an export of its own; not to be changed."""

    def export(out: Path) -> None:
        words = [run_folder, "--out", out, "--name", "half", "--precision", "fp16"]
        assert main([str(word) for word in words]) == 0

    return made_once(common_folder(tmp_path_factory.getbasetemp()) / "halved", export) / "half"


@pytest.fixture
def bundle_copy(bundle: Path, tmp_path: Path) -> Path:
    """The bundle in a place of its own, to be changed."""
    return shutil.copytree(bundle, tmp_path / "moved" / "bundle")


@pytest.fixture
def same_graphs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export the session's model without PyTorch's exporter."""
    monkeypatch.setattr(
        deploy_bundle, "export_graph", lambda graph: ir.load(bundle / f"{graph.io.name}.onnx")
    )


class Command:
    """A command in a process of its own; leaving its ``with`` block ends it."""

    def __init__(self, pid: int, out: Path, err: Path, status: Callable[[], int]) -> None:
        self.pid, self.out, self.err, self.status = pid, out, err, status
        self.code: int | None = None

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *error: object) -> None:
        if self.code is None:
            self.send(signal.SIGKILL)
            self.status()

    def wait_for(self, text: str) -> None:
        """Until its standard output has `text`."""
        until = time.monotonic() + SECONDS
        while text not in self.out.read_text():
            assert time.monotonic() < until, self.out.read_text() + self.err.read_text()
            time.sleep(0.005)

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def result(self) -> Result:
        """Wait for its end."""
        self.code = self.status()
        return Result(self.code, self.out.read_text(), self.err.read_text())


class ForkServer:
    """See forkserver.py."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "forkserver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def start(
        self, *args: str | Path, out: str | None = None, err: str | None = None, **options: Any
    ) -> Command:
        """Start a command; `out`, `err`: devices in place of files."""
        assert self.process.stdin
        self.number += 1
        files = [self.folder / f"{self.number}.{stream}" for stream in ("out", "err")]
        for file in files:
            file.touch()
        streams = {"out": out or str(files[0]), "err": err or str(files[1])}
        request = {"args": [str(a) for a in args], **streams, **options}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        return Command(self._number(), *files, self._number)

    def _number(self) -> int:
        """The next line that the server answers; it is killed where it doesn't."""
        assert self.process.stdout
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
            if not ready:
                self.process.kill()
            read = self.process.stdout.read(1)
            assert read, "the server of commands has ended"
            line += read
        return int(line)


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path_factory.mktemp("commands"))
    with server.process:
        yield server
        assert server.process.stdin
        server.process.stdin.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder that is in use: every byte of it is compared."""
    folder = tmp_path / "out"
    (folder / ".hidden").mkdir(parents=True)
    (folder / ".hidden" / "file").write_text("precious")
    (folder / "other").symlink_to("nowhere")
    return folder


@pytest.fixture
def export_refused(refused: Callable[..., str], out: Path, tmp_path: Path) -> Callable[..., str]:
    """Export to a folder in use, to one that is not there, and inspect: all must refuse alike."""

    def run(model: Path, *words: str, says: tuple[str, ...]) -> str:
        sentence = refused(model, "--out", out, *words, watched=out, says=says)
        missing = tmp_path / "not there"
        again = refused(model, "--out", missing / "deep", *words, watched=missing, says=says)
        inspected = refused("inspect", model, *words, watched=out, says=says)
        assert sentence == again == inspected
        assert str(model) in sentence
        return sentence

    return run


@pytest.fixture
def run_copy(run_folder: Path, tmp_path: Path) -> Path:
    """The run folder, to be spoiled."""
    return shutil.copytree(run_folder, tmp_path / "run")


@pytest.fixture
def native(checkpoint, tmp_path: Path) -> Callable[..., Path]:
    """Return a native checkpoint with some entries of the file, or of its state dict, changed."""

    def make(state: dict[str, Any] | None = None, drop: tuple[str, ...] = (), **entries) -> Path:
        tensors = dict(checkpoint.state) | (state or {})
        for name in drop:
            del tensors[name]
        head = {"format": "ckv", "version": 1, "config": checkpoint.spec.to_dict()}
        torch.save(head | {"state_dict": tensors} | entries, tmp_path / "model.pt")
        return tmp_path / "model.pt"

    return make

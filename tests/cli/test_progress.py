"""What is shown while it works: on a terminal, in a file, and to a reader who leaves early."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckv_export.cli.show import ShownStages, console, print_lines, table
from ckv_export.engine import available
from ckv_export.manifest import open_bundle

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
rtx = pytest.mark.skipif("tensorrt_rtx" not in available(), reason="tensorrt_rtx isn't installed")


class Terminal:
    """A pseudo-terminal and all that was written to it."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.openpty()
        self.name, self.data = os.ttyname(self.theirs), b""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        # EIO: nobody has the other end open any longer.
        with contextlib.suppress(OSError):
            while data := os.read(self.ours, 4096):
                self.data += data

    def text(self) -> str:
        """Everything, once the command has ended."""
        os.close(self.theirs)
        self.reader.join()
        os.close(self.ours)
        return self.data.decode()


@pytest.fixture
def stages(bundle: Path) -> list[str]:
    return [*json.loads((bundle / "manifest.json").read_text())["timings"], "publish"]


def test_names_and_paths_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]):
    """Rich drops "[v2]" where it looks for markup, fails on "[/b]", and draws ":100:"."""
    name = "a[/b]/sim[v2] --history=0:100:200"
    with ShownStages().stage(name) as stage:
        stage.remark = name
    console.print(table(name, ("what",), [(name,)]))
    console.print(name)
    print_lines([name])
    assert capsys.readouterr().out.count(name) == 6


def lines_of(text: str, stage: str) -> list[str]:
    """The lines that say that a stage ended."""
    return [x for x in text.splitlines() if re.match(rf"{stage} +(done|FAILED) ", x)]


def test_on_a_terminal(fork_server, bundle, run_folder, stages, tmp_path: Path):
    """A spinner names the stage that runs; what stays is a line for each."""
    terminal = Terminal()
    words = (run_folder, "--out", tmp_path / "out")
    with fork_server.start(*words, out=terminal.name, graphs=str(bundle)) as command:
        result = command.result()
    text = terminal.text()
    assert (result.code, result.err) == (0, "")
    assert "\x1b[?25l" in text, "the spinner hides the cursor"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "and it is back at the end"
    plain = ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    for stage in stages:
        (line,) = lines_of(plain, stage)
        assert re.search(r"done +\d+\.\d s", line)


def test_an_interrupt_gives_the_terminal_back(fork_server, bundle, run_folder, tmp_path: Path):
    """The cursor that the spinner hid is shown again."""
    terminal = Terminal()
    words = (run_folder, "--out", tmp_path / "out")
    options = {"out": terminal.name, "graphs": str(bundle), "hold": "parity: reference"}
    with fork_server.start(*words, **options) as command:
        while b"<held>" not in terminal.data:
            assert terminal.reader.is_alive()
            time.sleep(0.01)
        command.send(signal.SIGINT)
        assert command.result().sentence().startswith("interrupted")
    text = terminal.text()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@rtx
def test_a_build_draws_bars_on_a_terminal_and_lines_elsewhere(fork_server, bundle_copy: Path):
    terminal = Terminal()
    words = ("build", bundle_copy, "--target", "sm86", "--optimization-level", "0")
    with fork_server.start(*words, err=terminal.name) as command:
        assert command.result().code == 0
    assert "━" in terminal.text()
    with fork_server.start(*words) as command:
        result = command.result()
    assert result.code == 0
    assert re.search(r"^Building engine.*: \d+\.\d s$", result.err, re.MULTILINE)
    for graph in ("prefill", "decode"):
        assert len(lines_of(result.out, f"build {graph} engine")) == 1


def test_in_a_file_without_control_characters(fork_server, bundle, run_folder, stages, tmp_path):
    with fork_server.start(run_folder, "--out", tmp_path / "out", graphs=str(bundle)) as command:
        result = command.result()
    assert (result.code, result.err) == (0, "")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", result.out)
    for stage in stages:
        assert len(lines_of(result.out, stage)) == 1


def test_a_stage_that_fails_says_so(cli, bundle_copy: Path):
    (bundle_copy / "decode.onnx").unlink()
    result = cli("parity", bundle_copy)
    assert result.sentence()
    (line,) = lines_of(result.out, "verify hashes")
    assert "FAILED" in line
    assert "done" not in result.out


@pytest.fixture
def leaves(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    """A pipe for a command's output, and the end to read it from."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    ends = [reader]
    yield str(path), ends
    for end in ends:
        os.close(end)


def read_line_and_leave(ends: list[int]) -> bytes:
    """As `head -1` does."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(ends[0], 1)
    os.close(ends.pop())
    return line


def test_a_reader_who_leaves_gets_the_bundle_all_the_same(
    fork_server, bundle, run_folder, leaves, tmp_path: Path
):
    name, ends = leaves
    words = (run_folder, "--out", tmp_path / "out", "--name", "micro")
    with fork_server.start(*words, out=name, graphs=str(bundle)) as command:
        assert read_line_and_leave(ends).startswith(b"load ")
        result = command.result()
    assert (result.code, result.err) == (0, "")
    open_bundle(tmp_path / "out" / "micro")


@rtx
def test_nor_does_a_reader_of_both_streams_stop_a_build(fork_server, bundle_copy, leaves):
    name, ends = leaves
    words = ("build", bundle_copy, "--target", "sm86", "--optimization-level", "0")
    with fork_server.start(*words, out=name, err=name) as command:
        read_line_and_leave(ends)
        assert command.result().code == 0
    assert len(open_bundle(bundle_copy).engines) == 2


@pytest.mark.parametrize("words", [("inspect",), ("inspect", "--json"), ("parity",)])
def test_a_reader_who_leaves_a_report(fork_server, bundle, leaves, words: tuple[str, ...]):
    name, ends = leaves
    with fork_server.start(words[0], bundle, *words[1:], out=name) as command:
        assert read_line_and_leave(ends)
        result = command.result()
    assert (result.code, result.err) == (0, "")


def test_the_program_in_a_pipeline(bundle: Path):
    """The real thing, in a real shell, with the exit code of the first of both."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    program = shlex.quote(str(Path(sys.executable).with_name("ckv-export")))
    script = f"set -o pipefail; {program} inspect {shlex.quote(str(bundle))} --json | head -1"
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


def test_without_a_standard_output(bundle: Path):
    """Closed, as some supervisors start programs."""
    program = str(Path(sys.executable).with_name("ckv-export"))
    script = f"{shlex.quote(program)} parity {shlex.quote(str(bundle))} >&-"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [(), ("--help",), ("export", "--help"), ("--version",)])
def test_help_and_version(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]):
    from ckv_export import __version__
    from ckv_export.cli.main import VERBS, main

    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    if "--version" in words:
        assert out == f"ckv-export {__version__}\n"
    elif "export" in words:
        assert "--out" in out
    else:
        assert all(verb in out for verb in VERBS)

"""Ctrl-C and SIGTERM at any moment: exit code 2, one sentence, everything as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ckv_export.deploy import bundle as deploy_bundle
from ckv_export.engine import available
from ckv_export.errors import ExportError
from ckv_export.manifest import open_bundle

SENTENCE = "interrupted; the output folder is as it was"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
STAGES = (
    "load",
    "split",
    "export prefill",
    "export decode",
    "save ONNX",
    "check ONNX",
    "parity: reference",
    "parity: split model",
    "parity: ONNX Runtime",
    "publish",
)
HELD = "<held>"
rtx = pytest.mark.skipif("tensorrt_rtx" not in available(), reason="tensorrt_rtx isn't installed")


def test_every_stage_is_listed_here(bundle: Path):
    assert [*json.loads((bundle / "manifest.json").read_text())["timings"], "publish"] == [*STAGES]


@pytest.fixture
def interrupted(fork_server, tree, bundle: Path) -> Callable[..., None]:
    """Send a signal while a stage runs; `watched` may not change."""

    def run(*words: str | Path, stage: str, number: signal.Signals, watched: Path) -> None:
        before = tree(watched)
        with fork_server.start(*words, graphs=str(bundle), hold=stage) as command:
            command.wait_for(HELD)
            if stage not in ("load", "verify hashes"):
                assert tree(watched) != before, "nothing is going on there"
            command.send(number)
            result = command.result()
        assert result.code == 2
        assert result.err.splitlines()[-1] == f"ckv-export: error: {SENTENCE}"
        assert "Traceback" not in result.err
        assert tree(watched) == before

    return run


@pytest.mark.parametrize("stage", STAGES)
def test_during_any_stage_over_an_old_bundle(
    interrupted, run_folder: Path, bundle_copy: Path, stage: str
):
    number = SIGNALS[STAGES.index(stage) % 2]
    words = (run_folder, "--out", bundle_copy.parent, "--name", bundle_copy.name, "--force")
    interrupted(*words, stage=stage, number=number, watched=bundle_copy.parent)
    open_bundle(bundle_copy)


@pytest.mark.parametrize("stage", ["load", "save ONNX", "publish"])
def test_into_a_folder_that_was_not_there(interrupted, run_folder, tmp_path: Path, stage: str):
    number = SIGNALS[(STAGES.index(stage) + 1) % 2]
    words = (run_folder, "--out", tmp_path / "made" / "for" / "it")
    interrupted(*words, stage=stage, number=number, watched=tmp_path / "made")


@rtx
@pytest.mark.parametrize("stage", ["verify hashes", "build prefill engine", "build decode engine"])
def test_while_engines_are_built_into_a_bundle(interrupted, bundle_copy: Path, stage: str):
    """Engines of the same name stay too: they are the ones that the manifest has hashes of."""
    (bundle_copy / "engines").mkdir()
    for graph in ("prefill", "decode"):
        (bundle_copy / "engines" / f"{graph}.tensorrt_rtx.sm86.engine").write_text("an old one")
    open_bundle(bundle_copy).with_files(bundle_copy).write(bundle_copy)
    words = ("build", bundle_copy, "--target", "sm86")
    interrupted(*words, stage=stage, number=signal.SIGINT, watched=bundle_copy.parent)
    open_bundle(bundle_copy)


@rtx
def test_while_a_library_builds(fork_server, tree, bundle_copy: Path):
    """Not held: TensorRT itself is told to stop."""
    before = tree(bundle_copy.parent)
    words = ("build", bundle_copy, "--optimization-level", "5")
    with fork_server.start(*words) as command:
        command.wait_for("build prefill engine")
        time.sleep(0.3)
        command.send(signal.SIGTERM)
        result = command.result()
    assert result.code == 2
    assert result.err.splitlines()[-1] == f"ckv-export: error: {SENTENCE}"
    assert "Traceback" not in result.err
    assert tree(bundle_copy.parent) == before


def test_impatience(fork_server, tree, bundle: Path, run_folder: Path, bundle_copy: Path):
    """The second Ctrl-C comes while the first one is being cleaned up after."""
    before = tree(bundle_copy.parent)
    words = (run_folder, "--out", bundle_copy.parent, "--name", bundle_copy.name, "--force")
    with fork_server.start(*words, graphs=str(bundle), hold="publish") as command:
        command.wait_for(HELD)
        for number in (*SIGNALS, *SIGNALS):
            command.send(number)
        result = command.result()
    assert result.code == 2
    assert "Traceback" not in result.err
    assert tree(bundle_copy.parent) == before


def test_at_any_moment(fork_server, tree, bundle, run_folder, bundle_copy: Path, rng):
    """Not held, so never at the same place: the old bundle with code 2, or the new one with 0."""
    out = bundle_copy.parent
    words = (run_folder, "--out", out, "--name", bundle_copy.name, "--force", "--seed", "1")
    with fork_server.start(*words, graphs=str(bundle)) as command:
        command.wait_for("load ")
        start = time.monotonic()
        assert command.result().code == 0
        lasts = time.monotonic() - start
    for _ in range(4):
        before = tree(out)
        after, number = rng.uniform(0, lasts), SIGNALS[rng.integers(2)]
        print(f"{number.name} after {after:.3f} s")
        with fork_server.start(*words, graphs=str(bundle)) as command:
            command.wait_for("load ")
            time.sleep(after)
            command.send(number)
            result = command.result()
        if result.code == 0 or "is complete" in result.err:
            assert "Traceback" not in result.err
            assert tree(out) != before
        else:
            assert result.sentence() == SENTENCE
            assert tree(out) == before
        assert [p.name for p in out.iterdir()] == [bundle_copy.name]
        open_bundle(bundle_copy)


@pytest.fixture
def started():
    """Start the installed program itself, Ctrl-C not ignored whatever runs these tests."""
    processes = []

    def start(*words: str | Path) -> subprocess.Popen[str]:
        program = shutil.which("ckv-export", path=Path(sys.executable).parent)
        assert program is not None
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            [program, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        signal.signal(signal.SIGINT, before)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_the_program_while_pytorch_exports(started, tree, run_folder: Path, bundle_copy: Path):
    before = tree(bundle_copy.parent)
    words = ("--out", bundle_copy.parent, "--name", bundle_copy.name, "--force")
    process = started(run_folder, *words)
    for line in process.stdout:
        if line.startswith("split"):
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (2, f"ckv-export: error: {SENTENCE}\n")
    assert tree(bundle_copy.parent) == before


def test_the_program_while_it_loads(started, run_folder: Path, tmp_path: Path):
    """PyTorch takes seconds to import: an interrupt there is one like any other."""
    process = started(run_folder, "--out", tmp_path / "out")
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        pytest.skip("no /proc here to see what the program loads")
    until = time.monotonic() + 60
    while "libtorch" not in maps.read_text():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (2, f"ckv-export: error: {SENTENCE}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["an error of its own", "a bug", "dropped"])
def test_that_is_swallowed(
    cli, tree, same_graphs, monkeypatch, run_folder: Path, bundle_copy: Path, how: str
):
    """PyTorch's exporter catches it now and then, and says that it can't export."""
    real = deploy_bundle.export_graph

    def export_graph(graph):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as swallowed:
            if how == "an error of its own":
                raise ExportError("PyTorch can't export the prefill graph") from swallowed
            if how == "a bug":
                raise RuntimeError("something else") from swallowed
        return real(graph)

    monkeypatch.setattr(deploy_bundle, "export_graph", export_graph)
    before, handler = tree(bundle_copy.parent), signal.signal(signal.SIGINT, by_default)
    words = (run_folder, "--out", bundle_copy.parent, "--name", bundle_copy.name, "--force")
    result = cli(*words)
    assert signal.signal(signal.SIGINT, handler) is by_default
    assert result.sentence() == SENTENCE
    assert tree(bundle_copy.parent) == before
    assert "export decode" not in result.out


def by_default(number: int, frame: object) -> None:
    raise AssertionError("the command line has its own handler")


def test_after_the_bundle_is_there(cli, monkeypatch, same_graphs, run_folder, tmp_path: Path):
    """While the summary is printed, nothing is as it was any more: the sentence must say so."""

    def interrupt(*args: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("ckv_export.cli.export._print_summary", interrupt)
    result = cli(run_folder, "--out", tmp_path / "out", "--name", "micro")
    sentence = result.sentence()
    assert "interrupted" in sentence
    assert str(tmp_path / "out" / "micro") in sentence
    assert "complete" in sentence
    open_bundle(tmp_path / "out" / "micro")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

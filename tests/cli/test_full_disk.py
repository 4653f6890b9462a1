"""A full disk: one sentence, exit code 2, everything as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckv_export.engine import available
from ckv_export.manifest import open_bundle

HERE = Path(__file__).resolve().parent
PAGE = 4096

Results = dict[str, dict[str, Any]]


def on_disk(*files: Path) -> int:
    """Bytes that the files take on a file system of pages."""
    return sum(-(-file.stat().st_size // PAGE) * PAGE for file in files)


@pytest.fixture(scope="module")
def small_disks(
    bundle: Path, run_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Results]:
    """Real file systems that fill up at different moments; all in one process."""
    graphs = on_disk(bundle / "prefill.onnx", bundle / "decode.onnx")
    cases, whole = on_disk(bundle / "parity_cases.npz"), on_disk(*bundle.rglob("*"))
    sizes = {
        "graphs": on_disk(bundle / "decode.onnx") // 2,
        "new-cases": graphs + cases // 2,
        "manifest": whole - on_disk(bundle / "manifest.json") + PAGE,
        "old-graphs": whole + graphs // 2,
        "old-cases": whole + graphs + cases // 2,
        "old-enough": 3 * whole,
    }
    at = tmp_path_factory.mktemp("disks")
    request = {"bundle": str(bundle), "model": str(run_folder), "at": str(at), "sizes": sizes}
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *(sys.executable, str(HERE / "fulldisk.py"), json.dumps(request)),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    return json.loads(done.stdout)


def may_mount() -> bool:
    program = shutil.which("unshare")
    trial = "mount -t tmpfs none /mnt"
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", trial]
    return bool(program) and subprocess.run(words, capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(not may_mount(), reason="this user may not mount a file system")


@needs_mounts
@pytest.mark.parametrize("name", ["graphs", "new-cases", "manifest", "old-graphs", "old-cases"])
def test_a_file_system_that_fills_up(small_disks: Results, name: str):
    result = small_disks[name]
    assert result["code"] == 2, result
    assert result["as before"], result
    assert result["err"].count("\n") == 1
    assert result["err"].startswith("ckv-export: error: ")
    assert "No space left on device" in result["err"]


@needs_mounts
def test_it_fills_up_at_different_moments(small_disks: Results):
    """So the sizes above are well chosen."""
    failed = {
        name: [line for line in result["out"].splitlines() if "FAILED" in line]
        for name, result in small_disks.items()
    }
    assert failed.pop("old-enough") == []
    moments = {name: lines[0].split("  ")[0] for name, lines in failed.items() if lines}
    assert moments["graphs"] == moments["old-graphs"] == "save ONNX"
    assert moments["manifest"] == "publish"


@needs_mounts
def test_a_file_system_with_room(small_disks: Results):
    """Nothing else was wrong in the tests above."""
    assert small_disks["old-enough"]["code"] == 0, small_disks["old-enough"]


@pytest.mark.parametrize("graph", ["prefill", "decode"])
@pytest.mark.parametrize("old", [True, False])
def test_a_file_that_may_not_grow(
    fork_server, tree, bundle: Path, run_folder: Path, bundle_copy: Path, graph: str, old: bool
):
    """The system's limit on the size of a file, much as a quota is: needs no rights."""
    sizes = sorted((bundle / f"{name}.onnx").stat().st_size for name in ("prefill", "decode"))
    limit = sizes[0] // 2 if graph == "prefill" else sum(sizes) // 2
    out = bundle_copy.parent if old else bundle_copy.parent / "made" / "for it"
    words = (run_folder, "--out", out, "--name", bundle_copy.name, "--force")
    before = tree(bundle_copy.parent)
    with fork_server.start(*words, graphs=str(bundle), file_limit=limit) as command:
        sentence = command.result().sentence()
    assert "File too large" in sentence
    assert tree(bundle_copy.parent) == before
    open_bundle(bundle_copy)


def test_a_full_standard_output(fork_server, tree, bundle, run_folder, tmp_path: Path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    for words in ((run_folder, "--out", tmp_path / "out"), ("inspect", bundle, "--json")):
        with fork_server.start(*words, graphs=str(bundle), out="/dev/full") as command:
            assert "No space left on device" in command.result().sentence()
        assert not (tmp_path / "out").exists()


@pytest.mark.skipif("tensorrt_rtx" not in available(), reason="tensorrt_rtx isn't installed")
def test_an_engine_that_may_not_grow(fork_server, tree, bundle_copy: Path):
    before = tree(bundle_copy.parent)
    words = ("build", bundle_copy, "--target", "sm86", "--optimization-level", "0")
    with fork_server.start(*words, file_limit=PAGE) as command:
        result = command.result()
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("ckv-export: error: ")
    assert "File too large" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert tree(bundle_copy.parent) == before

"""bench/on_gpu.py: what it would run is there to be run, and no step's fate hides another's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from ckv_testing.scripts import load_script

import ckv_export
from ckv_export.cli import demo
from ckv_export.cli.main import parser

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "on_gpu.py"
OWN = Path(__file__).resolve()


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script(SCRIPT, monkeypatch)


def test_without_a_gpu_it_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, SCRIPT, out],
        capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "no NVIDIA GPU" in done.stderr
    assert not out.exists()


def test_every_command_is_one_that_exists(on_gpu: ModuleType, tmp_path: Path) -> None:
    cmake = "".join(path.read_text() for path in (ROOT / "plugins").glob("**/CMakeLists.txt"))
    names = [step.name for step in on_gpu.steps(tmp_path, 7)]
    assert len(set(names)) == len(names)
    for step in on_gpu.steps(tmp_path, 7):
        words = [str(word) for word in step.command]
        for word in words:
            if word.startswith(("bench/", "tests/")):
                assert (ROOT / word).exists(), step
            if word.startswith(str(on_gpu.NATIVE)) and word != str(on_gpu.NATIVE):
                assert f"add_executable({Path(word).name} " in cmake, step
        if words[0] == str(on_gpu.HARNESS):
            assert words[1] in ("check", "random"), step
            assert words[2] == "7", step
        if "--preset" in words:
            presets = json.loads((ROOT / words[2] / "CMakePresets.json").read_text())
            folders = {p["name"]: p["binaryDir"] for p in presets["configurePresets"]}
            folder = folders[words[4]].replace("${sourceDir}", str(ROOT / words[2]))
            assert folder == str(on_gpu.NATIVE)
        if "--target" in words:
            assert f"add_executable({words[-1]} " in cmake, step
        if words[1:3] == ["-m", "ckv_export"]:
            parser().parse_args(words[3:])
        if "--checkpoint" in words:
            trained = tmp_path / "engines" / demo._TRAINED / "sim" / "demo-sim.pt"
            assert words[words.index("--checkpoint") + 1] == str(trained)
            assert words[4] == str(tmp_path / "engines" / trained.stem)


def test_every_test_that_needs_a_gpu_is_run(on_gpu: ModuleType, tmp_path: Path) -> None:
    words = {str(word) for step in on_gpu.steps(tmp_path, 7) for word in step.command}
    files = (ROOT / "tests").glob("*/test_*.py")
    marked = [file for file in files if "pytest.mark.gpu" in file.read_text() and file != OWN]
    assert marked
    assert {str(file.relative_to(ROOT)) for file in marked} <= words


@pytest.mark.parametrize(
    ("cache", "found"),
    [
        (None, False),
        ("TensorRT_INCLUDE_DIR:PATH=TensorRT_INCLUDE_DIR-NOTFOUND\n", False),
        ("TensorRT_INCLUDE_DIR:PATH=/opt/tensorrt/include\n", True),
    ],
)
def test_plugins_are_left_out_where_cmake_found_no_headers(
    on_gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cache: str | None,
    found: bool,
) -> None:
    monkeypatch.setattr(on_gpu, "NATIVE", tmp_path)
    if cache is not None:
        (tmp_path / "CMakeCache.txt").write_text(cache)
    steps = {step.name: step for step in on_gpu.steps(tmp_path, 7)}
    for name in ("build-plugins", "enqueue"):
        assert (steps[name].why_not() is None) == found


def test_each_step_is_run_and_told(
    on_gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def python(code: str) -> tuple[str, ...]:
        return (sys.executable, "-c", code)

    own = Path(sys.executable)
    slow = """
import subprocess, time
deaf = "trap '' INT; for i in $(seq 200); do echo .; sleep 0.05; done"
print(8)
subprocess.Popen(["sh", "-c", deaf])
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("put down", flush=True)
"""
    made = [
        on_gpu.Step("good", (sys.executable, tmp_path / "good.py")),
        on_gpu.Step("bad", python("print('worse'); raise SystemExit(3)")),
        on_gpu.Step("slow", python(slow)),
        on_gpu.Step("absent", (tmp_path / "no-such-program",)),
        on_gpu.Step("unable", python("print(9)"), lambda: "something is missing"),
        on_gpu.Step("last", python(f"import shutil; print(shutil.which({own.name!r}))")),
    ]
    (tmp_path / "good.py").write_text(
        "import os, ckv_export; print(os.getcwd(), ckv_export.__file__)"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("PYTHONPATH", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)

    def steps(out: Path, seed: int) -> object:
        assert out.is_absolute() or out == Path()
        return made

    monkeypatch.setattr(on_gpu, "steps", steps)
    monkeypatch.setattr(on_gpu, "facts", lambda: {"gpu": "one"})

    def run(*words: str) -> tuple[int, dict[str, object]]:
        monkeypatch.setattr(sys, "argv", ["on_gpu.py", "out", *words])
        code = on_gpu.main()
        return code, json.loads((tmp_path / "out" / "steps.json").read_text())

    code, whole = run("--limit", "3", "--seed", "11")
    steps = whole["steps"]
    assert code == 1
    assert (whole["gpu"], whole["seed"]) == ("one", 11)
    statuses = {name: step.get("status", "skipped") for name, step in steps.items()}
    assert statuses == {
        "good": 0, "bad": 3, "slow": None, "absent": 127, "unable": "skipped", "last": 0
    }  # fmt: skip
    assert steps["unable"] == {"skipped": "something is missing"}
    assert (tmp_path / "out" / "good.log").read_text() == f"{ROOT} {ckv_export.__file__}\n"
    # What it had started is gone as well, even what does not listen.
    slow_log = (tmp_path / "out" / "slow.log").read_text()
    time.sleep(0.3)
    assert (tmp_path / "out" / "slow.log").read_text() == slow_log
    assert slow_log.startswith("8\n")
    assert set(slow_log.splitlines()) == {"8", ".", "put down"}
    assert (tmp_path / "out" / "last.log").read_text() == f"{own}\n"
    assert not (tmp_path / "out" / "unable.log").exists()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines if line[0] != " "] == list(statuses)
    assert "FAILED (3)" in lines[1]
    assert lines[2] == "    worse"
    assert lines[3].startswith("slow: out of time")
    assert lines[4] == "    8"
    assert run("--only", "last", "unable")[0] == 0
    # No time for what comes after, nor more than is left for what goes on.
    monkeypatch.setattr(on_gpu, "GRACE", 1)
    code, whole = run("--only", "slow", "last", "--within", "2")
    assert code == 1
    assert whole["steps"]["slow"]["status"] is None
    assert whole["steps"]["last"] == {"not_reached": True}
    assert capsys.readouterr().out.endswith("last: not reached\n")


def test_told_to_end_it_ends_what_it_runs(tmp_path: Path) -> None:
    """Steps are sessions of their own: nobody else would."""
    log = tmp_path / "step.log"
    child = "import time; [print(9, flush=True) or time.sleep(0.05) for _ in range(400)]"
    code = f"""
import on_gpu, pathlib, sys
on_gpu.facts = lambda: {{"gpu": "one"}}
on_gpu.steps = lambda out, seed: [on_gpu.Step("step", (sys.executable, "-uc", {child!r}))]
sys.argv = ["on_gpu.py", {str(tmp_path)!r}]
on_gpu.main()
"""
    process = subprocess.Popen([sys.executable, "-c", code], env={"PYTHONPATH": str(SCRIPT.parent)})
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=20) != 0
    printed = log.read_text()
    time.sleep(0.3)
    assert log.read_text() == printed

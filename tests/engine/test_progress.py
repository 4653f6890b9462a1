"""Progress comes in order, and stops a build when asked."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from ckv_export.engine import Backend, build_engine, progress_display
from ckv_export.engine.progress import Cancellation, deferred_signals
from ckv_export.errors import EngineError

pytestmark = pytest.mark.tensorrt


class Recorder:
    """Writes down every call and checks that phases nest."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.steps: dict[str, int] = {}
        self.open: list[str] = []

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        assert steps > 0
        assert parent is None or parent in self.open
        self.open.append(name)
        self.steps[name] = 0
        self.calls.append(f"start {name}")

    def step(self, name: str, index: int) -> None:
        assert name in self.open
        assert index == self.steps[name]
        self.steps[name] += 1
        self.calls.append("step")

    def finish(self, name: str) -> None:
        self.open.remove(name)
        self.calls.append(f"finish {name}")


class At:
    """Does something at the first step."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action
        self.steps = 0

    def phase_start(self, name: str, parent: str | None, steps: int) -> None: ...

    def step(self, name: str, index: int) -> None:
        self.steps += 1
        if self.steps == 1:
            self.action()

    def finish(self, name: str) -> None: ...


def test_phases_nest_and_steps_count_up(rtx: Backend, projection, tmp_path: Path) -> None:
    recorder = Recorder()
    build_engine(projection.request(), rtx, tmp_path / "e", recorder)
    assert recorder.open == []
    assert recorder.calls[0].startswith("start ")
    assert recorder.calls[-1] == recorder.calls[0].replace("start", "finish")
    assert "step" in recorder.calls


def test_interrupt_cancels_and_is_delivered(rtx: Backend, projection, tmp_path: Path) -> None:
    listener = At(lambda: signal.raise_signal(signal.SIGINT))
    # A job in the background ignores Ctrl-C, and so would this process as one.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(projection.request(), rtx, tmp_path / "e", listener)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, previous)
    assert listener.steps == 1
    assert [p.name for p in tmp_path.iterdir()] == ["graph.onnx"]
    assert build_engine(projection.request(), rtx, tmp_path / "e").bytes > 0


def test_a_handler_that_returns_still_ends_the_build(
    rtx: Backend, projection, tmp_path: Path
) -> None:
    heard: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(EngineError, match="stopped by SIGTERM; no engine was written"):
            build_engine(
                projection.request(),
                rtx,
                tmp_path / "e",
                At(lambda: signal.raise_signal(signal.SIGTERM)),
            )
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert heard == [signal.SIGTERM]


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_a_listener_that_fails_stops_the_build(
    rtx: Backend,
    projection,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    kind: type[BaseException],
) -> None:
    def fail() -> None:
        raise kind("the listener's own")

    listener = At(fail)
    with pytest.raises(kind, match="the listener's own"):
        build_engine(projection.request(), rtx, tmp_path / "e", listener)
    assert listener.steps == 1
    assert "ERROR" not in capfd.readouterr().err
    assert not (tmp_path / "e").exists()


def test_builds_in_another_thread(rtx: Backend, projection, tmp_path: Path) -> None:
    built: list[int] = []
    thread = threading.Thread(
        target=lambda: built.append(build_engine(projection.request(), rtx, tmp_path / "e").bytes)
    )
    thread.start()
    thread.join()
    assert built[0] > 0


def test_ignored_signals_stay_ignored() -> None:
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with deferred_signals(Cancellation()):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_handler_that_could_not_be_put_back_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that C code installed reads as None."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *given: pytest.fail(f"replaced {given}"))
    with deferred_signals(Cancellation()):
        pass


def test_plain_lines_without_a_terminal(rtx: Backend, projection, tmp_path: Path) -> None:
    text = io.StringIO()
    with progress_display(Console(file=text)) as listener:
        build_engine(projection.request(), rtx, tmp_path / "e", listener)
    lines = text.getvalue().splitlines()
    assert 1 <= len(lines) <= 10
    assert all(line.endswith(" s") for line in lines)
    assert "\x1b" not in text.getvalue()


def test_bars_on_a_terminal(rtx: Backend, projection, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with progress_display(console) as listener:
        build_engine(projection.request(), rtx, tmp_path / "e", listener)
    assert (tmp_path / "e").exists()

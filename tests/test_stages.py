"""Stages are timed, listed when they end, and reported when they fail."""

from __future__ import annotations

import pytest

from ckv_export.stages import Stage, Stages


class Noted(Stages):
    """Notes what a command line would show."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, str, str]] = []

    def started(self, stage: Stage) -> None:
        self.events.append(("started", stage.title, stage.remark))

    def ended(self, stage: Stage) -> None:
        self.events.append(("ended", stage.title, stage.remark))

    def failed(self, stage: Stage) -> None:
        self.events.append(("failed", stage.title, stage.remark))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test moves by hand."""
    now = [100.0]
    monkeypatch.setattr("ckv_export.stages.time.perf_counter", lambda: now[0])
    return now


def test_stages_are_timed_in_order(clock: list[float]):
    stages = Stages()
    for title, seconds in (("load", 0.0), ("export prefill", 1.23456), ("check", 0.0004)):
        with stages.stage(title):
            clock[0] += seconds
    assert [s.title for s in stages.finished] == ["load", "export prefill", "check"]
    assert [s.seconds for s in stages.finished] == pytest.approx([0.0, 1.23456, 0.0004])
    assert stages.timings() == {"load": 0.0, "export prefill": 1.235, "check": 0.0}


def test_no_stage_no_timing():
    assert Stages().timings() == {}


def test_remark_of_the_body_is_shown_at_the_end():
    stages = Noted()
    with stages.stage("load") as stage:
        assert stages.events == [("started", "load", "")]
        assert stages.finished == []
        stage.remark = "sim, 12 tensors"
    assert stages.events[1:] == [("ended", "load", "sim, 12 tensors")]
    assert stages.finished[0].remark == "sim, 12 tensors"


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_failed_stage_is_reported_and_the_error_passes(
    kind: type[BaseException], clock: list[float]
):
    stages = Noted()

    def run() -> None:
        with stages.stage("export") as stage:
            started.append(stage)
            stage.remark = "half done"
            clock[0] += 2.5
            raise kind

    started: list[Stage] = []
    with pytest.raises(kind):
        run()
    assert stages.events == [("started", "export", ""), ("failed", "export", "half done")]
    assert started[0].seconds == pytest.approx(2.5)
    assert stages.finished == []
    assert stages.timings() == {}


def test_stages_go_on_after_a_failure(clock: list[float]):
    stages = Stages()
    with pytest.raises(ValueError, match="no"), stages.stage("first"):
        raise ValueError("no")
    with stages.stage("second"):
        clock[0] += 1
    assert stages.timings() == {"second": 1.0}


def test_stage_within_a_stage(clock: list[float]):
    stages = Noted()
    with stages.stage("outer"):
        clock[0] += 1
        with stages.stage("inner"):
            clock[0] += 2
    assert stages.timings() == {"inner": 2.0, "outer": 3.0}
    assert [e[:2] for e in stages.events] == [
        ("started", "outer"), ("started", "inner"), ("ended", "inner"), ("ended", "outer"),
    ]  # fmt: skip


def test_error_in_showing_the_end_is_not_swallowed():
    class Broken(Stages):
        def ended(self, stage: Stage) -> None:
            raise OSError("no terminal")

    stages = Broken()
    with pytest.raises(OSError, match="no terminal"), stages.stage("load"):
        pass
    assert [s.title for s in stages.finished] == ["load"]

"""A bundle that is there before another is published, and signals as a terminal sends them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from ckv_testing.publishing import HANDLERS, fill

from ckv_export.deploy import exchange as exchange_module


@pytest.fixture
def plain_signals() -> Iterator[None]:
    """The same wherever these tests run: a job in the background ignores Ctrl-C."""
    before = {number: signal.signal(number, handler) for number, handler in HANDLERS.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A bundle that is there before, with neighbours."""
    fill(tmp_path / "out" / "name", "old")
    fill(tmp_path / "out" / "neighbour", "another")
    (tmp_path / "out" / ".hidden").write_text("precious")
    return tmp_path / "out" / "name"


@pytest.fixture(params=["one step", "three steps"])
def _either_exchange(request, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as on file systems that know no exchange."""
    if request.param == "three steps":
        monkeypatch.setattr(exchange_module, "_in_one_step", lambda one, other: False)

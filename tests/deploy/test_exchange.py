"""Two folders change places, both or neither."""

from __future__ import annotations

import ctypes
import errno
import tempfile
from pathlib import Path

import pytest
from ckv_testing.publishing import either_exchange, fill, listing

from ckv_export.deploy import exchange as exchange_module
from ckv_export.deploy.exchange import exchange

pytestmark = pytest.mark.usefixtures("plain_signals")


@either_exchange
def test_exchange(tmp_path: Path):
    fill(tmp_path / "a", "of a")
    fill(tmp_path / "b", "of b")
    exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "graph").read_text() == "of b"
    assert (tmp_path / "b" / "graph").read_text() == "of a"
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


def test_a_system_that_knows_no_exchange(tmp_path: Path, monkeypatch):
    """Nor a place for temporary files on the same file system but that of the two."""
    fill(tmp_path / "a", "of a")
    fill(tmp_path / "b", "of b")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "graph").read_text() == "of b"
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_exchange_in_steps_that_fail(
    tmp_path: Path, monkeypatch, failing: int, error: BaseException
):
    """Both are where they were, and nothing is beside them."""
    fill(tmp_path / "a", "of a")
    fill(tmp_path / "b", "of b")
    before, calls, real = listing(tmp_path), [], Path.rename

    def rename(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing:
            raise error
        return real(self, target)

    monkeypatch.setattr(exchange_module, "_in_one_step", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(type(error)):
        exchange(tmp_path / "a", tmp_path / "b")
    assert listing(tmp_path) == before

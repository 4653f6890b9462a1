"""The timing cache: read, added to, and refused where it is another's. TensorRT is a stand-in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ckv_testing import fake_builder
from ckv_testing.fake_builder import FakeTensorRt
from ckv_testing.fake_config import HEADER, Config

from ckv_export.engine import Backend, Settings, build_engine
from ckv_export.errors import EngineError


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    return fake_builder.install(monkeypatch)


def build(projection, full: FakeTensorRt, cache: Path, out: Path) -> None:
    request = projection.request(targets=("current",), settings=Settings(timing_cache=cache))
    build_engine(request, full.backend, out)


def test_timings_are_kept_and_added_to(projection, full: FakeTensorRt, tmp_path: Path):
    cache = tmp_path / "timings"
    build(projection, full, cache, tmp_path / "e")
    assert cache.read_bytes() == HEADER + b"one more\n"
    build(projection, full, cache, tmp_path / "e")
    assert cache.read_bytes() == HEADER + b"one more\n" * 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("theirs", "kept"), [(HEADER + b"theirs\n", [b"theirs"]), (b"hello", [])])
def test_what_another_build_wrote_meanwhile_stays(
    projection,
    full: FakeTensorRt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    theirs: bytes,
    kept: list[bytes],
):
    """Unless it is no cache."""
    cache = tmp_path / "timings"
    real = fake_builder.Builder.build_serialized_network

    def build_slowly(self, network, config: Config) -> bytes:
        cache.write_bytes(theirs)
        return real(self, network, config)

    monkeypatch.setattr(fake_builder.Builder, "build_serialized_network", build_slowly)
    build(projection, full, cache, tmp_path / "e")
    assert sorted(cache.read_bytes().splitlines()) == sorted([HEADER.strip(), b"one more", *kept])


@pytest.mark.parametrize(
    "stale", [b"timings of 11.3.0 on sm90\n", b"timings of 11.4.0 on sm86\n", b"hello"]
)
def test_a_stale_or_damaged_cache_is_refused_and_left(
    projection, full: FakeTensorRt, tmp_path: Path, stale: bytes
):
    cache = tmp_path / "timings"
    cache.write_bytes(stale)
    with pytest.raises(EngineError, match=r"no timing cache that TensorRT 11\.4\.0 can use"):
        build(projection, full, cache, tmp_path / "e")
    assert cache.read_bytes() == stale
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError])
def test_bindings_that_raise_for_a_damaged_cache(
    projection,
    full: FakeTensorRt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Exception],
):
    def refuse(self: Config, data: bytes) -> None:
        raise kind("nullptr")

    (tmp_path / "timings").write_bytes(b"hello")
    monkeypatch.setattr(Config, "create_timing_cache", refuse)
    with pytest.raises(EngineError, match="no timing cache that"):
        build(projection, full, tmp_path / "timings", tmp_path / "e")


def test_a_disk_that_is_full_at_last_leaves_the_old_timings(
    projection, full: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = tmp_path / "timings"
    build(projection, full, cache, tmp_path / "e")
    before = cache.read_bytes()

    def refuse(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(EngineError, match=r"can't write the timing cache \S*: No space left"):
        build(projection, full, cache, tmp_path / "e")
    assert cache.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_places_that_are_no_file(
    projection, full: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They are refused before the build; reading a pipe would wait for its other end."""
    monkeypatch.setattr(fake_builder.Builder, "build_serialized_network", None)
    os.mkfifo(tmp_path / "pipe")
    for place, says in (
        ("no/timings", "there is no folder"),
        ("", r"can't write the timing cache \S*: it is no plain file$"),
        ("pipe", r"can't write the timing cache \S*: it is no plain file$"),
        ("x" * 300, r"can't write the timing cache \S*: File name too long$"),
    ):
        with pytest.raises(EngineError, match=says):
            build(projection, full, tmp_path / place, tmp_path / "e")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(EngineError, match=r"timing cache \S*: its folder is read-only$"):
        build(projection, full, tmp_path / "timings", tmp_path / "e")


def test_a_cache_that_cannot_be_written_leaves_no_engine(
    projection, full: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = tmp_path / "timings"
    real = Path.open

    def refuse(self: Path, mode: str = "r", *arguments, **named):
        if "timings" in self.name and "w" in mode:
            raise OSError(28, "No space left on device")
        return real(self, mode, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(EngineError, match=r"can't write the timing cache \S*: No space left"):
        build(projection, full, cache, tmp_path / "e")
    assert not (tmp_path / "e").exists()
    assert not cache.exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"timing_cache": Path("t")}, "has no --timing-cache: it measures nothing"),
        ({"version_compatible": True}, "has no --version-compatible"),
        ({"hardware_compatible": True}, "has no --hardware-compatible: name the GPU generations"),
    ],
)
@pytest.mark.tensorrt
def test_rtx_says_what_it_does_not_have(
    rtx: Backend, projection, tmp_path: Path, settings: dict[str, object], says: str
):
    request = projection.request(settings=Settings(**settings))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=rf"{says}.*\(or use --backend tensorrt\)"):
        build_engine(request, rtx, tmp_path / "e")

"""Names of GPU generations, for RTX by choice and for TensorRT by presence."""

from __future__ import annotations

import enum
from types import ModuleType

import pytest
import torch

from ckv_export.engine import Backend, default_targets, known_targets, parse_targets, targets
from ckv_export.engine.targets import set_targets
from ckv_export.errors import EngineError

Capability = enum.Enum("Capability", "NONE CURRENT SM75 SM80 SM86 SM89 SM120 SM121")


def backend(name: str) -> Backend:
    module = ModuleType(name)
    module.ComputeCapability = Capability  # type: ignore[attr-defined]
    return Backend(name, module, "10.9.0" if name == "tensorrt" else "1.7.1")


RTX, FULL = backend("tensorrt_rtx"), backend("tensorrt")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Pretend that this GPU is present."""

    def pretend(generation: str | None) -> None:
        monkeypatch.setattr(targets, "present_gpu", lambda: generation)

    return pretend


@pytest.mark.tensorrt
def test_real_module_names_generations(rtx: Backend) -> None:
    assert {"sm75", "sm80", "sm86", "sm89", "sm120"} <= set(known_targets(rtx))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("portable",), ("sm80", "sm86", "sm89", "sm120", "sm121")),
        (("sm86",), ("sm86",)),
        (("8.6", "SM_86", " 86 "), ("sm86",)),
        (("12.0",), ("sm120",)),
        (("ada", "ampere"), ("sm89", "sm80", "sm86")),
        (("Blackwell",), ("sm120", "sm121")),
        (("turing",), ("sm75",)),
    ],
)
def test_rtx_names(names: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert parse_targets(names, RTX) == expected


def test_rtx_current_is_the_gpu_present(gpu) -> None:
    gpu("sm89")
    assert parse_targets(("current",), RTX) == ("sm89",)
    gpu(None)
    with pytest.raises(EngineError, match="no GPU here to build for: name a generation"):
        parse_targets(("current",), RTX)


def test_unknown_target_lists_what_is_allowed() -> None:
    with pytest.raises(EngineError) as failure:
        parse_targets(("portible",), RTX)
    for part in ("portable, current, sm75", "ada", "'portible'", "did you mean 'portable'?"):
        assert part in str(failure.value)
    assert "hopper" not in str(failure.value)


def test_hopper_is_not_taken_for_ada() -> None:
    for name in ("sm90", "9.0", "hopper"):
        with pytest.raises(EngineError, match=r"with the backend 'tensorrt'$"):
            parse_targets((name,), RTX)


def test_no_target_is_refused() -> None:
    with pytest.raises(EngineError, match="at least one target"):
        parse_targets((), RTX)


def test_full_tensorrt_builds_for_the_gpu_present(gpu) -> None:
    gpu("sm90")
    for name in ("current", "sm90", "9.0", "hopper"):
        assert parse_targets((name,), FULL) == ("sm90",)
    with pytest.raises(EngineError, match="builds only for the GPU that is present"):
        parse_targets(("sm86",), FULL)
    with pytest.raises(EngineError, match=r"not for several .* use the target 'current'"):
        parse_targets(("portable",), FULL)
    gpu(None)
    with pytest.raises(EngineError, match="no GPU here to build for: use the backend"):
        parse_targets(("current",), FULL)


def test_a_family_is_any_of_its_generations(gpu) -> None:
    gpu("sm86")
    assert parse_targets(("ampere",), FULL) == ("sm86",)


@pytest.mark.parametrize("present", [True, False])
def test_the_gpu_present_is_torchs_word(monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA RTX")
    found = targets.present_gpu(), targets.present_gpu_name()
    assert found == (("sm120", "NVIDIA RTX") if present else (None, None))


def test_defaults() -> None:
    assert default_targets(RTX) == ("portable",)
    assert default_targets(FULL) == ("current",)
    assert known_targets(FULL) == ()


class Config:
    num_compute_capabilities = 0

    def __init__(self) -> None:
        self.set: list[tuple[object, int]] = []

    def set_compute_capability(self, capability: object, index: int) -> None:
        self.set.append((capability, index))


def test_targets_reach_the_configuration() -> None:
    config = Config()
    set_targets(config, ("sm86", "sm120"), RTX)
    assert config.num_compute_capabilities == 2
    assert config.set == [(Capability.SM86, 0), (Capability.SM120, 1)]


def test_full_tensorrt_needs_no_setting() -> None:
    config = Config()
    set_targets(config, ("sm90",), FULL)
    assert config.set == []

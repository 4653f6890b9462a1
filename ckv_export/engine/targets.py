"""GPU generations an engine is built for, by name: ``sm86``, ``ada``, ``portable``.

TensorRT for RTX builds for any set of generations on any machine. The full TensorRT
builds for the GPU that is present, so there a target is a promise to be checked, not a
choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ckv_export.engine.backends import Backend
from ckv_export.errors import EngineError, nearest

PORTABLE = "portable"
"""Every generation that runs an fp32 graph: one engine for all of them."""

CURRENT = "current"
"""The GPU in this machine."""

FAMILIES = {
    "turing": ("sm75",),
    "ampere": ("sm80", "sm86"),
    "ada": ("sm89",),
    "hopper": ("sm90",),
    "blackwell": ("sm120", "sm121"),
}
"""Marketing name -> generations, as far as a backend knows them."""

NOT_PORTABLE = frozenset({"sm75"})
"""Turing has no fp32 matrix product in TensorRT for RTX: one such target fails the whole build."""


def default_targets(backend: Backend) -> tuple[str, ...]:
    """Return what to build for when nobody said: ``portable`` for RTX, else the GPU present."""
    return (PORTABLE,) if backend.is_rtx else (CURRENT,)


def known_targets(backend: Backend) -> tuple[str, ...]:
    """Name the generations of this TensorRT for RTX, oldest first; () for the full TensorRT."""
    if not backend.is_rtx:
        return ()
    numbers = re.findall(r"\bSM(\d+)\b", " ".join(backend.module.ComputeCapability.__members__))
    return tuple(f"sm{number}" for number in sorted(numbers, key=int))


def parse_targets(names: Sequence[str], backend: Backend) -> tuple[str, ...]:
    """Return the generations meant by `names`, each once, in the order first named.

    A name is a generation (``sm86``, also written ``8.6`` or ``SM_86``), a family
    (``ada``), ``portable`` or ``current``. For the full TensorRT all of them must be
    the GPU that is present. Raises `EngineError` naming what is allowed.
    """
    if not names:
        raise EngineError("an engine needs at least one target, got none")
    expand = _rtx_target if backend.is_rtx else _present_target
    return tuple(dict.fromkeys(target for name in names for target in expand(name, backend)))


def set_targets(config: Any, targets: Iterable[str], backend: Backend) -> None:
    """Write parsed targets into a builder configuration; the full TensorRT needs none."""
    if not backend.is_rtx:
        return
    capabilities = [backend.module.ComputeCapability.__members__[t.upper()] for t in targets]
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(capability, index)


def present_gpu() -> str | None:
    """Return the generation of this machine's first GPU, as ``sm90``; None without one."""
    # Imported late: only the full TensorRT and "current" ask, and torch takes seconds.
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def present_gpu_name() -> str | None:
    """Return the name of this machine's first GPU, ``NVIDIA H100 80GB HBM3``; None without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def require_gpu(purpose: str) -> None:
    """Raise `EngineError` where this machine has no GPU for `purpose`."""
    if present_gpu() is None:
        raise EngineError(
            f"{purpose} needs a GPU that they were built for, and there is none here that torch "
            "can use: run it on the GPU machine"
        )


def _rtx_target(name: str, backend: Backend) -> tuple[str, ...]:
    known = known_targets(backend)
    if name == PORTABLE:
        return tuple(t for t in known if t not in NOT_PORTABLE)
    meant = (_required_gpu(backend),) if name == CURRENT else _named(name)
    usable = tuple(t for t in meant if t in known)
    if not usable:
        raise EngineError(_unknown_target(name, known, backend))
    return usable


def _present_target(name: str, backend: Backend) -> tuple[str, ...]:
    present = _required_gpu(backend)
    if name == PORTABLE:
        raise EngineError(
            f"{backend.label} builds for the GPU that is present ({present}), not for several "
            f"generations: use the target {CURRENT!r}, or the backend 'tensorrt_rtx' for "
            f"the target {PORTABLE!r}"
        )
    if name != CURRENT and present not in _named(name):
        raise EngineError(
            f"{backend.label} builds only for the GPU that is present ({present}), "
            f"got the target {name!r}: build on such a GPU, or use the backend 'tensorrt_rtx'"
        )
    return (present,)


def _required_gpu(backend: Backend) -> str:
    present = present_gpu()
    if present is None:
        instead = "name a generation" if backend.is_rtx else "use the backend 'tensorrt_rtx'"
        raise EngineError(
            f"{backend.label} finds no GPU here to build for: {instead} to build without one"
        )
    return present


def _named(name: str) -> tuple[str, ...]:
    plain = name.strip().lower()
    number = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", plain)
    return (f"sm{number[1]}{number[2]}",) if number else FAMILIES.get(plain, ())


def _unknown_target(name: str, known: tuple[str, ...], backend: Backend) -> str:
    families = [f for f, members in FAMILIES.items() if set(members) & set(known)]
    allowed = (PORTABLE, CURRENT, *known, *families)
    # A real generation that RTX lacks (H100: sm90) is no misspelling of another one.
    hint = "; build on that GPU with the backend 'tensorrt'" if _named(name) else ""
    return (
        f"{backend.label} builds for {', '.join(allowed)}, "
        f"got the target {name!r}{hint or nearest(name, allowed)}"
    )

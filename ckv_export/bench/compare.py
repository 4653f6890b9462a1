"""Two results side by side: what became slower by more than the noise of both."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckv_export.bench.statistics import RatioInterval, ratio_of_medians
from ckv_export.errors import InputError, reason

SCHEMA_VERSION = 1
LEAST_WINDOWS = 3
"""Of a timing that is compared: fewer tell nothing of the noise."""
_SIZES = ("batch", "history", "appended", "candidates")
_NEEDED: Mapping[str, Mapping[str, type | None]] = {
    "environment": {"machine": dict, "gpus": list, "versions": dict},
    "bundle": {"fingerprint": str, "precision": str},
    "settings": {"sizes": None, "threads": int, "stored": str, "source": str},
}
"""What is read of a result beside its ways; None: its sizes."""
_SAME = ("fingerprint", "precision")
_SAME_SETTINGS = ("threads", "stored", "source")
_MACHINE = ("cpu", "cores")


@dataclass(frozen=True)
class Row:
    """One phase of one way in both results."""

    way: str
    phase: str
    old_ms: float
    new_ms: float
    interval: RatioInterval
    verdict: str

    def row(self) -> tuple[str, ...]:
        """Cells of a table."""
        ends = f"{self.interval.low:.3f} to {self.interval.high:.3f}"
        numbers = (f"{self.old_ms:.3f}", f"{self.new_ms:.3f}", f"{self.interval.ratio:.3f}")
        return (self.way, self.phase, *numbers, ends, self.verdict)


@dataclass(frozen=True)
class Comparison:
    """All phases that both results have, and what differs between their machines."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        """Whether anything became slower."""
        return any(row.verdict == "slower" for row in self.rows)


def load(path: Path) -> dict[str, Any]:
    """Read a result; raises `InputError` for anything else."""
    try:
        result = json.loads(path.read_text())
        version, _ = result["schema_version"], result["ways"]
    except OSError as error:
        raise InputError(f"can't read the result {path}: {reason(error)}") from error
    except KeyError as error:
        raise InputError(f"{path} is no result of ckv-export bench: it lacks {error}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is no result of ckv-export bench: {error}") from error
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} is a result of schema version {version}, this ckv-export reads "
            f"{SCHEMA_VERSION}: measure again"
        )
    wrong = list(_lacking(result))
    if wrong:
        raise InputError(
            f"{path} is no result of ckv-export bench: it lacks {', '.join(wrong)}: measure again"
        )
    return dict(result)


def _lacking(result: Mapping[str, Any]) -> Iterator[str]:
    """Names of parts and fields that are not there, or are of another kind."""
    for part, fields in _NEEDED.items():
        given = result.get(part)
        if isinstance(given, dict):
            yield from (f"{part}.{n}" for n, kind in fields.items() if not _is(given.get(n), kind))
        else:
            yield part
    if not (isinstance(result["ways"], list) and all(map(_is_way, result["ways"]))):
        yield "ways"


def _is(value: Any, kind: type | None) -> bool:
    return _are_sizes(value) if kind is None else isinstance(value, kind)


def _are_sizes(value: Any) -> bool:
    if not (isinstance(value, dict) and all(isinstance(value.get(n), int) for n in _SIZES)):
        return False
    return bool(value["batch"] > 0)


def _is_way(way: Any) -> bool:
    named = isinstance(way, dict) and all(
        isinstance(way.get(name), str) for name in ("name", "device", "cache")
    )
    return named and _is_mapping_of(way.get("phases"), _is_timing)


def _is_mapping_of(value: Any, good: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(good, value.values()))


def _is_timing(timing: Any) -> bool:
    if not (isinstance(timing, dict) and isinstance(timing.get("windows_ms"), list)):
        return False
    windows = timing["windows_ms"]
    times = [timing.get("p50_ms"), timing.get("mean_ms")]
    for window in windows:
        times += window if isinstance(window, list) and window else [None]
    return all(isinstance(t, (int, float)) and 0 < t < math.inf for t in times)


def require_comparable(
    old: Mapping[str, Any], new: Mapping[str, Any], *, any_machine: bool = False
) -> tuple[str, ...]:
    """How the machines of two results differ, of which nothing need be timed yet.

    Raises `InputError` where they aren't of the same model, sizes and settings, and, unless
    `any_machine`, where they aren't of the same processor, cores and GPUs.
    """
    differing = list(_differences(old, new))
    if differing:
        raise InputError(
            f"the results can't be compared, they differ in {'; '.join(differing)}: measure with "
            "the same bundle and options"
        )
    machines = tuple(_machine_differences(old, new))
    if machines and not any_machine:
        raise InputError(
            f"the results are of different machines ({'; '.join(machines)}): a ratio would say "
            "nothing of the code; give --any-machine to compare all the same"
        )
    return machines


def compare(
    old: Mapping[str, Any], new: Mapping[str, Any], margin: float, *, any_machine: bool = False
) -> Comparison:
    """Judge each phase by a bootstrap of its windows; slower by `margin` (a share) regresses.

    Raises `InputError` as `require_comparable`, and where they have no phase in common.
    """
    machines = require_comparable(old, new, any_machine=any_machine)
    rows = tuple(_rows(old, new, margin))
    if not rows:
        raise InputError(
            f"the results have no way and phase in common with {LEAST_WINDOWS} windows in each"
        )
    return Comparison(rows, (*machines, *_version_notes(old, new)))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    bundles, settings = ([result[n] for result in (old, new)] for n in ("bundle", "settings"))
    yield from _unequal(_SAME, *bundles)
    yield from _unequal(_SIZES, *(each["sizes"] for each in settings))
    yield from _unequal(_SAME_SETTINGS, *settings)


def _unequal(
    names: Iterable[str], before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[str]:
    for name in names:
        if before.get(name) != after.get(name):
            yield f"{name}: {before.get(name)} and {after.get(name)}"


def _machine_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    yield from _unequal(_MACHINE, *(result["environment"]["machine"] for result in (old, new)))
    gpus = [_gpus(result) for result in (old, new)]
    if gpus[0] != gpus[1]:
        yield f"GPUs: {gpus[0]} and {gpus[1]}"


def _gpus(result: Mapping[str, Any]) -> str:
    gpus = result["environment"]["gpus"]
    names = (g.get("name") if isinstance(g, dict) else g for g in gpus)
    return ", ".join(map(str, names)) or "none"


def _version_notes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = (result["environment"]["versions"] for result in (old, new))
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            yield f"{name} {before[name]} and {after[name]}"


def _rows(old: Mapping[str, Any], new: Mapping[str, Any], margin: float) -> Iterator[Row]:
    before = {way["name"]: way["phases"] for way in old["ways"]}
    for way in new["ways"]:
        for phase, timing in way["phases"].items():
            earlier = before.get(way["name"], {}).get(phase)
            if earlier is None:
                continue
            windows = earlier["windows_ms"], timing["windows_ms"]
            if min(map(len, windows)) < LEAST_WINDOWS:
                continue
            interval = ratio_of_medians(*windows)
            medians = earlier["p50_ms"], timing["p50_ms"]
            yield Row(way["name"], phase, *medians, interval, interval.verdict(margin))

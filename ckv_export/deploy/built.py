"""What was built: the reports beside a bundle's engines, read back for a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ckv_export.errors import BundleError, reason
from ckv_export.manifest import EngineEntry

HEADS = ("engine", "part", "precision of its layers", "pool step", "as read from")


def read_report(folder: Path, entry: EngineEntry) -> Mapping[str, Any] | None:
    """The report of an engine; None where its build left none.

    Raises `BundleError` where it is listed and can't be read.
    """
    if not entry.report:
        return None
    try:
        data: dict[str, Any] = json.loads((folder / entry.report).read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder / entry.report} can't be read: {reason(error)}") from error
    return data


def rows(folder: Path, entries: Iterable[EngineEntry]) -> list[tuple[str, ...]]:
    """Rows under `HEADS`: one for an engine of one precision, else one for each part."""
    found: list[tuple[str, ...]] = []
    for entry in entries:
        report = read_report(folder, entry)
        if report is None:
            found.append((entry.file, "all", "unknown", entry.pool_step, "no report"))
            continue
        parts = _parts(report["precisions"])
        ends = entry.pool_step, report["source"]
        found += [(entry.file, part, _text(counts), *ends) for part, counts in parts.items()]
    return found


def _parts(parts: Mapping[str, Mapping[str, int]]) -> Mapping[str, Mapping[str, int]]:
    total: Counter[str] = Counter()
    for counts in parts.values():
        total.update(counts)
    return {"all": total} if len(total) <= 1 else parts


def _text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({number})" for name, number in sorted(counts.items())) or "none"

"""The sets of engines that a bundle holds, one engine a graph, each a way to serve it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ckv_export.manifest import EngineEntry, Manifest

BACKENDS = ("tensorrt", "tensorrt_rtx")
GRAPHS = ("prefill", "decode")


@dataclass(frozen=True)
class EngineSet:
    """Engines of prefill and decode of one library, plugin and choice of GPUs.

    `name`: what tells it from the bundle's other sets.
    """

    name: str
    prefill: EngineEntry
    decode: EngineEntry

    @property
    def backend(self) -> str:
        """The library that built them."""
        return self.decode.backend


def engine_sets(manifest: Manifest) -> Iterator[EngineSet]:
    """Every complete set, in the order of `BACKENDS` and then of the manifest.

    An engine with a plugin says so in its name: ``tensorrt engines, library plugin``; targets are
    named where two sets differ in nothing else.
    """
    groups: dict[tuple[str, str, str], dict[str, EngineEntry]] = {}
    for entry in sorted(manifest.engines, key=_rank):
        kind = str(entry.plugin["kind"]) if entry.plugin else ""
        key = (entry.backend, kind, "-".join(entry.targets))
        groups.setdefault(key, {})[entry.graph] = entry
    whole = {key: group for key, group in groups.items() if set(GRAPHS) <= set(group)}
    for (backend, kind, targets), group in whole.items():
        alike = sum(other[:2] == (backend, kind) for other in whole)
        words = [f"{backend} engines" + (f" for {targets}" if alike > 1 else "")]
        words += [f"{kind} plugin"] if kind else []
        yield EngineSet(", ".join(words), *(group[graph] for graph in GRAPHS))


def _rank(entry: EngineEntry) -> int:
    return BACKENDS.index(entry.backend) if entry.backend in BACKENDS else len(BACKENDS)

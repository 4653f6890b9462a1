"""The bundles of one benchmark: the one that is measured, and those beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckv_export.deploy.twins import require_twin
from ckv_export.errors import InputError
from ckv_export.manifest import Manifest, open_bundle


@dataclass(frozen=True)
class BenchedBundle:
    """A verified bundle; `label`: what its ways are named after, "" for that of the benchmark."""

    folder: Path
    manifest: Manifest
    label: str = ""

    def title(self, way: str) -> str:
        """The name of a way that runs this bundle's files."""
        return f"{self.label}: {way}" if self.label else way


def open_bundles(folder: Path, beside: Sequence[Path]) -> list[BenchedBundle]:
    """Read and verify all; the first is `folder`.

    One beside it is labelled with its own name, or its path where another has that name. Raises
    `BundleError` for a damaged one, `InputError` for one that isn't of the first's model, takes
    other inputs, looks up other item features, or is given twice.
    """
    main = open_bundle(folder)
    others = [(path, open_bundle(path)) for path in beside]
    places = [path.resolve() for path in (folder, *beside)]
    for place in places:
        if places.count(place) > 1:
            raise InputError(f"the bundle {place} is given twice: give --beside another one")
    for path, other in others:
        require_twin("--beside", path, other, main)
    names = [main.name, *(other.name for _, other in others)]
    labelled = [
        BenchedBundle(path, other, other.name if names.count(other.name) == 1 else str(path))
        for path, other in others
    ]
    return [BenchedBundle(folder, main), *labelled]

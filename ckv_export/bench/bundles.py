"""The bundles of one benchmark: the one that is measured, and those beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
        _require_same_model(path, other, main)
        _require_same_requests(path, other, main)
    names = [main.name, *(other.name for _, other in others)]
    labelled = [
        BenchedBundle(path, other, other.name if names.count(other.name) == 1 else str(path))
        for path, other in others
    ]
    return [BenchedBundle(folder, main), *labelled]


def _require_same_model(path: Path, other: Manifest, main: Manifest) -> None:
    if other.fingerprint != main.fingerprint:
        raise InputError(
            f"{path} is of another model (fingerprint {other.fingerprint[:16]}, that of "
            f"{main.name} is {main.fingerprint[:16]}): --beside takes bundles exported from the "
            "same checkpoint"
        )


def _require_same_requests(path: Path, other: Manifest, main: Manifest) -> None:
    """Of bundles of one model, whether a request for one is a request for the other."""
    inputs, known = _inputs(other), _inputs(main)
    if inputs != known:
        added, missing = sorted(inputs - known), sorted(known - inputs)
        raise InputError(
            f"the graphs of {path} take other inputs than those of {main.name}: "
            f"{', '.join(added) or 'nothing'} instead of {', '.join(missing) or 'nothing'}; export "
            "both with the same --embeddings and --item-features"
        )
    if other.fingerprints.get("looked up", "") != main.fingerprints.get("looked up", ""):
        raise InputError(
            f"the graphs of {path} look up other item features than those of {main.name}: export "
            "both with the same --item-features"
        )


def _inputs(manifest: Manifest) -> set[str]:
    """What graphs take in a request: pools are bound."""
    graphs = (manifest.graph("prefill"), manifest.graph("decode"))
    names = {tensor.name for graph in graphs for tensor in graph.inputs}
    pools = manifest.form.pool_tensors(manifest.model, manifest.model.num_layers)
    return names - {tensor.name for tensor in pools}

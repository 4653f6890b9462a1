"""Whether two bundles are of one model, and a request for one is a request for the other."""

from __future__ import annotations

from pathlib import Path

from ckv_export.errors import InputError
from ckv_export.manifest import Manifest


def require_twin(option: str, path: Path, other: Manifest, main: Manifest) -> None:
    """Raise `InputError` where `other`, given at `path` by `option`, can't stand in for `main`.

    That is where it is of another model, takes other inputs, or looks up other item features.
    """
    if other.fingerprint != main.fingerprint:
        raise InputError(
            f"{path} is of another model (fingerprint {other.fingerprint[:16]}, that of "
            f"{main.name} is {main.fingerprint[:16]}): {option} takes bundles exported from the "
            "same checkpoint"
        )
    inputs, known = _inputs(other), _inputs(main)
    if inputs != known:
        added, missing = sorted(inputs - known), sorted(known - inputs)
        raise InputError(
            f"the graphs of {path} take other inputs than those of {main.name}: "
            f"{', '.join(added) or 'nothing'} instead of {', '.join(missing) or 'nothing'}; export "
            "both with the same --embeddings and --item-features"
        )
    if other.fingerprints.get("looked up") != main.fingerprints.get("looked up"):
        files = [m.source.get("item_features") or "no file" for m in (other, main)]
        raise InputError(
            f"the graphs of {path} look up the item features of {files[0]}, those of {main.name} "
            f"others, of {files[1]}: export both with the same --item-features"
        )


def _inputs(manifest: Manifest) -> set[str]:
    """What graphs take in a request: pools are bound."""
    graphs = (manifest.graph("prefill"), manifest.graph("decode"))
    names = {tensor.name for graph in graphs for tensor in graph.inputs}
    pools = manifest.form.pool_tensors(manifest.model, manifest.model.num_layers)
    return names - {tensor.name for tensor in pools}

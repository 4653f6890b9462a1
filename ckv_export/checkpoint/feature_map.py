"""feature_map.json of a FuxiCTR run: the features in concatenation order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ckv_export.checkpoint.facts import Facts
from ckv_export.errors import CheckpointError, nearest, reason


def read_features(path: Path, run: Facts) -> dict[str, Facts]:
    """Return name -> specification of the features that this run embeds, in order.

    Of `run`, `use_features` chooses and orders them and `feature_specs` changes their
    specifications. Labels and features of type "meta" are left out. Raises
    `CheckpointError` if the file is no feature map, belongs to another dataset than
    `run`, or lacks a feature that the run names.
    """
    data = _read(path)
    if "dataset_id" in data:
        run.agree("dataset_id", data["dataset_id"], f"{path.name} is of")
    features = _listed(data, path.name)
    if run.get("use_features"):
        features = {name: _known(name, features) for name in run.need("use_features", list)}
    _override(features, run)
    labels = data["labels"] if isinstance(data.get("labels"), list) else ()
    return {
        name: Facts(spec, f"feature {name!r} in {path.name}")
        for name, spec in features.items()
        if spec.get("type") != "meta" and name not in labels
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path.name} can't be read: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("features"), list):
        raise CheckpointError(f"{path.name} is no FuxiCTR feature map: it lists no 'features'")
    return data


def _listed(data: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    features: dict[str, dict[str, Any]] = {}
    for entry in data["features"]:
        if not isinstance(entry, dict) or not all(isinstance(s, dict) for s in entry.values()):
            raise CheckpointError(f"{where}: a feature is written {{name: {{...}}}}, got {entry!r}")
        for name, spec in entry.items():
            if name in features:
                raise CheckpointError(f"{where} lists the feature {name!r} twice")
            features[name] = spec
    return features


def _known(name: Any, features: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if not isinstance(name, str) or name not in features:
        raise CheckpointError(
            f"the run names a feature {name!r} that is not among the features of the map"
            f"{nearest(str(name), features)}"
        )
    return features[name]


def _override(features: dict[str, dict[str, Any]], run: Facts) -> None:
    """Apply ``feature_specs``: a list of {name: one or several, key: value, ...}."""
    for change in run.optional("feature_specs", list) or ():
        if not isinstance(change, dict) or "name" not in change:
            raise CheckpointError(
                f"{run.where}: an entry of feature_specs needs a name, got {change!r}"
            )
        names = change["name"] if isinstance(change["name"], list) else [change["name"]]
        for name in names:
            _known(name, features).update(change)

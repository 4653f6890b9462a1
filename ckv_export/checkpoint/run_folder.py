"""Which files of a FuxiCTR run folder belong to the model that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckv_export.checkpoint.facts import Facts
from ckv_export.checkpoint.yaml_params import NEEDED, read_experiment
from ckv_export.errors import CheckpointError, nearest

FEATURE_MAP = "feature_map.json"
PARAMS = "model_config.yaml"
YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run and the parameters of its experiment."""

    weights: Path
    feature_map: Path
    yaml: Path
    experiment: str
    params: Facts


def find_run(folder: Path, weights: str | None, params: str | None) -> RunFolder:
    """Choose the weights, the YAML file and the experiment of a run folder.

    `weights`: a file name in the folder, or a path. `params`: an experiment id of
    model_config.yaml, or the name or path of another YAML file. Both may be left out where
    there is only one choice. Raises `CheckpointError` listing the choices otherwise.
    """
    chosen = _weights(folder, weights)
    is_file = params is not None and params.endswith(YAML_SUFFIXES)
    path = _yaml(folder, params if is_file else None)
    experiment, facts = read_experiment(path, None if is_file else params, chosen.stem)
    feature_map = folder / FEATURE_MAP
    if not feature_map.is_file():
        raise CheckpointError(
            f"the folder has no {FEATURE_MAP}, which lists the features; FuxiCTR leaves it in "
            "the folder of the dataset: copy it here"
        )
    return RunFolder(chosen, feature_map, path, experiment, facts)


def _weights(folder: Path, wanted: str | None) -> Path:
    found = {path.name: path for path in sorted(folder.glob("*.model"))}
    if wanted is not None:
        return _named(folder, wanted, "weights file", found)
    if len(found) != 1:
        raise CheckpointError(
            f"the folder has {len(found)} *.model files"
            + (f" ({', '.join(found)}); choose one with --weights FILE" if found else "")
        )
    return next(iter(found.values()))


def _yaml(folder: Path, wanted: str | None) -> Path:
    found = {p.name: p for p in sorted(folder.glob("*")) if p.suffix in YAML_SUFFIXES}
    if wanted is not None:
        return _named(folder, wanted, "YAML file", found)
    if PARAMS not in found:
        others = f" (here are {', '.join(found)})" if found else ""
        raise CheckpointError(
            f"the folder has no {PARAMS}{others}; the weights don't tell {NEEDED}: "
            "copy the run's YAML here, or name it with --params FILE"
        )
    return found[PARAMS]


def _named(folder: Path, wanted: str, what: str, found: dict[str, Path]) -> Path:
    for path in (folder / wanted, Path(wanted)):
        if path.is_file():
            return path
    raise CheckpointError(
        f"there is no {what} {wanted!r}; the folder has {', '.join(found) or 'none'}"
        f"{nearest(wanted, found)}"
    )

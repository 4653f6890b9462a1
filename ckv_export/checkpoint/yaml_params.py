"""The YAML of a FuxiCTR run: experiments and the hyperparameters of one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ckv_export.checkpoint.facts import Facts
from ckv_export.errors import CheckpointError, nearest, reason

BASE = "Base"
NEEDED = (
    "num_heads, short_seq_len, max_len, dnn_activations, topk (SIM, ETA, TWIN), use_scale (ETA), "
    "l2_norm (SDIM), reuse_hash (ETA, SDIM)"
)


def read_experiment(path: Path, wanted: str | None, stem: str) -> tuple[str, Facts]:
    """Return the id and the parameters of one experiment of the YAML file `path`.

    `wanted`: its id; without one it is the experiment called `stem`, as the weights are, or
    else the only one. The section "Base" supplies defaults. Raises `CheckpointError` if the
    file can't be read, or doesn't tell which experiment it is.
    """
    sections = _sections(path)
    experiments = {
        name: values
        for name, values in sections.items()
        if name != BASE and ("model" in values or name in (wanted, stem))
    }
    chosen = wanted if wanted is not None else _only(experiments, stem, path)
    if chosen not in experiments:
        raise CheckpointError(
            f"{path.name} has no experiment {chosen!r}, only {_listed(experiments)}"
            f"{nearest(chosen, experiments)}"
        )
    values = sections.get(BASE, {}) | experiments[chosen]
    return chosen, Facts(values, f"experiment {chosen!r} of {path.name}")


def _only(experiments: dict[str, Any], stem: str, path: Path) -> str:
    if stem in experiments:
        return stem
    if len(experiments) == 1:
        return next(iter(experiments))
    raise CheckpointError(
        f"{path.name} has no experiment {stem!r}, as the weights are called, and "
        f"{len(experiments)} others: {_listed(experiments)}; choose one with --params ID"
    )


def _listed(experiments: dict[str, Any]) -> str:
    return ", ".join(experiments) or "none"


def _sections(path: Path) -> dict[str, dict[str, Any]]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path.name} can't be read: {reason(error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise CheckpointError(f"{path.name} is not plain YAML: {told}") from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path.name} must map experiment ids to parameters, got {type(data).__name__}"
        )
    return {str(name): values for name, values in data.items() if isinstance(values, dict)}

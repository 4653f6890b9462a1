"""What the reference model answers, recorded so that a bundle can be judged without it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ckv_export.arrays import read_arrays
from ckv_export.contract import FEATURES, CacheSpec, EventForm, ModelSpec
from ckv_export.errors import BundleError, EventsError
from ckv_export.model.reference import Reference
from ckv_export.parity.inputs import Case
from ckv_export.parity.selection import selection_margin
from ckv_export.runtimes.base import Array, Arrays


@dataclass(frozen=True)
class ExpectedCase:
    """A case with the reference's outputs.

    `outputs`: ``cache_*`` [B, L, S, ...], ``append_*`` [B, L, T, ...] and ``score`` [B, C].
    `margins`: for every ``*_index`` tensor the distance between the largest and the second
    largest router logit, of the same shape: how close that index was to being another; infinite
    where all are the same, since the first of them is then no matter of rounding.
    `selection` [B, C]: how close a candidate's own choices were to others, see `selection_margin`;
    None where that isn't known.
    """

    case: Case
    outputs: Arrays
    margins: Arrays
    selection: Array | None = None

    @property
    def layers(self) -> int:
        """L, the layers that cache."""
        return next(a.shape[1] for name, a in self.outputs.items() if name.startswith("cache_"))


def record(
    reference: Reference, cases: Iterable[Case], form: EventForm = FEATURES
) -> list[ExpectedCase]:
    """Evaluate `reference` on every case; the inputs kept are those of graphs of that form."""
    with torch.inference_mode():
        return [_record_one(reference, case, form) for case in cases]


def _record_one(reference: Reference, case: Case, form: EventForm) -> ExpectedCase:
    given = {name: torch.from_numpy(array) for name, array in case.inputs.items()}
    history = _joined(reference.spec, given)
    mask = torch.cat([given["history_mask"], given["append_mask"]], dim=1)
    candidates = _group(given, "candidate_")
    score = reference.score(history, mask, candidates, _group(given, "user_"))
    selection = selection_margin(reference, history, mask, candidates)
    outputs, margins = _entries(reference, history, mask, case.cached)
    inputs = _in_form(reference, given, form)
    outputs["score"] = _array(score)
    return ExpectedCase(Case(case.name, inputs, case.labels), outputs, margins, selection)


def _in_form(reference: Reference, given: Mapping[str, Tensor], form: EventForm) -> Arrays:
    spec, groups = reference.spec, ("history", "append", "candidate")
    wanted = [t.name for group in groups for t in form.item_tensors(spec, group)]
    wanted += [t.name for t in form.user_tensors(spec)] + ["history_mask", "append_mask"]
    made = dict(given)
    if form.embeddings == "external":
        features = spec.embedded_item_features
        for group in groups:
            values = _group(given, f"{group}_")
            made[f"{group}_embedding"] = reference.embed(features, values)
        if spec.user_features:
            users = _group(given, "user_")
            made["user_embedding"] = reference.embed(spec.user_features, users)
    return {name: made[name].contiguous().numpy() for name in wanted}


def _joined(spec: ModelSpec, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        f.name: torch.cat([given[f"history_{f.name}"], given[f"append_{f.name}"]], dim=1)
        for f in spec.item_features
    }


def _group(given: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in given.items() if n.startswith(prefix)}


def _entries(
    reference: Reference, history: Mapping[str, Tensor], mask: Tensor, cached: int
) -> tuple[Arrays, Arrays]:
    layers = reference.cache(history, mask)
    outputs: Arrays = {}
    margins: Arrays = {}
    for suffix, _, width in CacheSpec.of(reference.spec).tensors:
        side = suffix[0]
        if width is None:
            _store(outputs, suffix, [entries.index[side] for entries in layers], cached)
            _store(margins, suffix, [entries.margin[side] for entries in layers], cached)
        else:
            _store(outputs, suffix, [entries.user[side] for entries in layers], cached)
    return outputs, margins


def _store(into: Arrays, suffix: str, layers: Sequence[Tensor | None], cached: int) -> None:
    layered = torch.stack([tensor for tensor in layers if tensor is not None], dim=1)
    into[f"cache_{suffix}"] = _array(layered[:, :, :cached])
    into[f"append_{suffix}"] = _array(layered[:, :, cached:])


def _array(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    array = tensor.contiguous().numpy()
    return array.astype(np.int32) if array.dtype == np.int64 else array.astype(np.float32)


def save(path: Path, cases: Sequence[ExpectedCase]) -> None:
    """Write the cases as one .npz: arrays ``<number>/<group>/<tensor>``, and the names.

    Groups: in, out, margin (of row numbers), selection (of the score).
    """
    arrays: Arrays = {"names": np.array([c.case.name for c in cases])}
    for number, case in enumerate(cases):
        selection = {} if case.selection is None else {"score": case.selection}
        groups = {"in": case.case.inputs, "out": case.outputs, "margin": case.margins}
        groups["selection"] = selection
        for group, tensors in groups.items():
            arrays |= {f"{number}/{group}/{name}": a for name, a in tensors.items()}
    with path.open("wb") as out:
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]  # no option is named so


def load(path: Path) -> list[ExpectedCase]:
    """Read what `save` wrote; raises `BundleError` on anything else."""
    try:
        arrays = read_arrays(path)
        return [_loaded(arrays, i, str(name)) for i, name in enumerate(arrays["names"])]
    except (EventsError, ValueError, KeyError) as error:
        raise BundleError(f"{path} holds no recorded parity cases: {error}") from error


def _loaded(arrays: Arrays, number: int, name: str) -> ExpectedCase:
    groups: dict[str, Arrays] = {"in": {}, "out": {}, "margin": {}, "selection": {}}
    for key, array in arrays.items():
        if key.startswith(f"{number}/"):
            _, group, tensor = key.split("/", 2)
            groups[group][tensor] = array
    selection = groups["selection"].get("score")
    return ExpectedCase(Case(name, groups["in"]), groups["out"], groups["margin"], selection)

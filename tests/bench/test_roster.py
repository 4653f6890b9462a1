"""Which weights go with a bundle, and which ways there are to run them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.bundles import manifest_of
from ckv_testing.draw import PLAIN, draw_state, make_spec
from ckv_testing.exports import Export

from ckv_export.bench.roster import load_weights, without_training_code, without_weights
from ckv_export.checkpoint.native import save_native
from ckv_export.contract import EventForm
from ckv_export.errors import CheckpointError
from ckv_export.manifest import Manifest


def made(folder: Path, items: int, rng: np.random.Generator) -> tuple[Path, Manifest]:
    """A checkpoint of a model with so many item features, and the manifest of its bundle."""
    spec = make_spec("sim", features=PLAIN[:items])
    state = draw_state(spec, rng)
    path = folder / f"{items}.pt"
    save_native(path, spec, state)
    return path, manifest_of(Export(spec, state, folder, [], 0))


@pytest.mark.parametrize(
    ("items", "form", "fits"),
    [
        (2, EventForm(pools="float16"), True),
        (1, EventForm(item_key="item_id"), True),  # an item table's: it takes all features
        (2, EventForm(item_key="item_id"), False),
        (1, EventForm(embeddings="external"), False),
    ],
)
def test_a_request_has_all_features_or_there_are_no_baselines(
    tmp_path: Path, rng: np.random.Generator, items: int, form: EventForm, fits: bool
):
    path, manifest = made(tmp_path, items, rng)
    manifest = dataclasses.replace(manifest, form=form)
    if fits:
        weights = load_weights(path, manifest)
        assert weights.model.spec == weights.reference.spec == manifest.model
    else:
        with pytest.raises(CheckpointError, match="need a bundle whose graphs take all features"):
            load_weights(path, manifest)


def test_another_checkpoint_is_refused(tmp_path: Path, rng: np.random.Generator):
    path, _ = made(tmp_path, 1, rng)
    _, manifest = made(tmp_path, 2, rng)
    says = rf"{path} has the fingerprint \w{{16}}, .* exported from {manifest.fingerprint[:16]}:"
    with pytest.raises(CheckpointError, match=says):
        load_weights(path, manifest)


def test_ways_that_are_left_out_are_named():
    names = [way.name for way in without_weights()]
    assert len(names) == len(set(names)) == 8
    trained = [way.name for way in without_training_code(make_spec("eta"))]
    assert trained == []
    # Of HSTU only the kind is looked at.
    hstu = dataclasses.replace(make_spec("eta"), kind="hstu", window=None, options={})
    assert {way.name for way in without_training_code(hstu)} < set(names)

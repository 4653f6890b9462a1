"""Manifests and bundles of drawn models, without the whole export."""

from __future__ import annotations

import dataclasses

from ckv_export.contract import FEATURES, Profile
from ckv_export.manifest import Manifest
from ckv_export.model.fingerprint import fingerprint
from ckv_export.parity import expected
from ckv_export.parity.bundle import CASES_FILE
from ckv_testing.exports import Export


def manifest_of(made: Export, precision: str = "fp32") -> Manifest:
    """A manifest of the model's own graphs; no file is hashed."""
    return Manifest(
        name="drawn",
        fingerprint=fingerprint(made.spec, made.state),
        model=made.spec,
        form=FEATURES,
        item_table=None,
        profile=Profile.default(made.spec),
        source={},
        versions={},
        operators={},
        notes=(),
        timings={},
        parity=None,
        precision=precision,
    )


def write_bundle(made: Export) -> Manifest:
    """Make a bundle of the export's folder: its cases and its manifest."""
    expected.save(made.folder / CASES_FILE, made.cases)
    summary = {"passed": True, "seed": made.seed, "cases": len(made.cases)}
    manifest = dataclasses.replace(manifest_of(made), parity=summary).with_files(made.folder)
    manifest.write(made.folder)
    return manifest

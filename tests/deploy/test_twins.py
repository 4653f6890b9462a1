"""Which bundles may stand in for one another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from ckv_testing.records import MANIFESTS

from ckv_export.contract import EventForm
from ckv_export.deploy.twins import require_twin
from ckv_export.errors import InputError

MAIN = dataclasses.replace(MANIFESTS["every kind of feature"], name="drawn")


def require(**changes: Any) -> None:
    require_twin("--beside", Path("b"), dataclasses.replace(MAIN, name="b", **changes), MAIN)


def test_another_model_is_refused():
    says = r"^b is of another model \(fingerprint f{16}, that of drawn .*: --beside takes bundles"
    with pytest.raises(InputError, match=says):
        require(fingerprint="f" * 64)


@pytest.mark.parametrize(
    ("form", "added", "missing"),
    [
        ("external embeddings", {"candidate_embedding", "user_embedding"}, {"append_item_id"}),
        ("one id of many features", {"nothing"}, {"event_tags", "candidate_price"}),
    ],
)
def test_other_inputs_are_refused_by_name(form: str, added: set[str], missing: set[str]):
    with pytest.raises(InputError, match="take other inputs than those of drawn: ") as refused:
        require(form=MANIFESTS[form].form)
    told = str(refused.value).split(": ", 1)[1].split(";")[0].split(" instead of ")
    for names, some in zip(told, (added, missing), strict=True):
        assert some <= set(names.split(", "))
        assert "append_mask" not in names


@pytest.mark.parametrize(("file", "told"), [("new.parquet", r"new\.parquet"), (None, "no file")])
def test_other_item_features_are_refused(file: str | None, told: str):
    says = f"b look up the item features of {told}, those of drawn others, of no file: export both"
    with pytest.raises(InputError, match=says):
        require(fingerprints={"looked up": "0" * 64}, source={"item_features": file})


def test_what_is_no_part_of_a_request_may_differ():
    """Pools are bound; a model of one item feature takes it whether it is a key or not."""
    require(precision="fp16", pool="input")
    main = MANIFESTS["HSTU with time"]
    other = dataclasses.replace(main, form=EventForm(item_key="item_id", pools="float32"))
    require_twin("--against", Path("b"), other, main)

"""Which caches a model can read: exactly those made with the tensors that its entries depend on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from ckv_testing.draw import KINDS, RICH, draw_state, make_spec

from ckv_export.contract import AttentionSpec, ModelSpec
from ckv_export.model.fingerprint import (
    Fingerprints,
    determines_entries,
    lookup_fingerprint,
)
from ckv_export.model.registry import build_reference
from ckv_export.parity.inputs import CaseSize, generate_case
from ckv_export.training import demo_spec, initial_state

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(kind: str, rng: np.random.Generator) -> tuple[ModelSpec, dict[str, torch.Tensor]]:
    if kind != "hstu":
        spec = make_spec(kind, features=RICH)
        return spec, draw_state(spec, rng)
    attention = AttentionSpec(8, 2, 2, 3, 40, 30)
    spec = dataclasses.replace(demo_spec("hstu"), attention=attention, num_layers=3)
    state = initial_state(spec, int(rng.integers(99)))
    generator = torch.Generator().manual_seed(int(rng.integers(99)))
    return spec, {n: torch.randn(t.shape, generator=generator) for n, t in state.items()}


def entries(
    spec: ModelSpec, state: dict[str, torch.Tensor], inputs: dict[str, np.ndarray]
) -> list[torch.Tensor]:
    """What the slow model caches: row numbers and user parts of all layers."""
    history = {
        f.name: torch.from_numpy(inputs[f"history_{f.name}"])
        for f in spec.features
        if f.role == "item"
    }
    layers = build_reference(spec, state).cache(history, torch.from_numpy(inputs["history_mask"]))
    found = [part for layer in layers for part in (*layer.index.values(), *layer.user.values())]
    return [t for t in found if t is not None]


@pytest.mark.parametrize("kind", [*KINDS, "hstu"])
def test_entries_change_with_exactly_the_tensors_that_are_said_to(
    kind: str, rng: np.random.Generator
):
    spec, state = drawn(kind, rng)
    inputs = generate_case(spec, CaseSize("all", 3, 17, 0, 1), rng).inputs
    before = entries(spec, state, inputs)
    identity = Fingerprints.of(spec, state)
    for name, tensor in state.items():
        if tensor.numel() == 0 or not tensor.is_floating_point():
            continue
        noise = torch.from_numpy(rng.standard_normal(tensor.shape)).float()
        changed = state | {name: tensor + noise}
        after = entries(spec, changed, inputs)
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert same == (not determines_entries(spec, name)), name
        other = Fingerprints.of(spec, changed)
        assert same == (other.entries == identity.entries), name
        assert other.model != identity.model
        assert (other.but_pools == identity.but_pools) == name.endswith(".pool"), name


def test_looked_up_features_are_part_of_it(rng: np.random.Generator):
    spec, state = drawn("sim", rng)
    one, other = ({"brand": torch.tensor([1, 2, n])} for n in (3, 4))
    assert lookup_fingerprint({}) == ""
    identities = {
        Fingerprints.of(spec, state, looked_up).entries
        for looked_up in ("", lookup_fingerprint(one), lookup_fingerprint(other))
    }
    assert len(identities) == 3


def test_another_attention_or_item_feature_is_another_cache(rng: np.random.Generator):
    spec, state = drawn("sim", rng)
    plain = dataclasses.replace(spec.attention, use_silu=False)
    wider = tuple(
        dataclasses.replace(f, pooling="sum") if f.kind == "sequence" and f.role == "item" else f
        for f in spec.features
    )
    users = tuple(
        dataclasses.replace(f, pooling="sum") if f.kind == "sequence" and f.role == "user" else f
        for f in spec.features
    )
    same = Fingerprints.of(spec, state).entries

    def changed(**fields: Any) -> str:
        return Fingerprints.of(dataclasses.replace(spec, **fields), state).entries

    assert changed(attention=plain) != same
    assert changed(features=wider) != same
    assert changed(features=users) == same

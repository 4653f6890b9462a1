"""What is measured of a cache, against the same sums written out user by user."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from ckv_testing.draw import draw_state, make_spec
from ckv_testing.serving import Shop

from ckv_export.checkpoint.native import save_native
from ckv_export.contract import (
    FEATURES,
    AttentionSpec,
    DnnSpec,
    FeatureSpec,
    ModelSpec,
    prefill_io,
)
from ckv_export.deploy.inspect import Measurement, Subject, open_subject, report_on
from ckv_export.errors import EventsError
from ckv_export.model.registry import build_model
from ckv_export.runtimes.base import Array, Arrays, Runner, RunnerMetadata
from ckv_export.training import initial_state

LAYERS, D, USER_K, ROWS, VOCAB = 3, 6, 2, 7, 30
USERS, EVENTS = 37, 9
SPEC = ModelSpec(
    kind="hstu",
    features=(FeatureSpec("item_id", "item", "categorical", 4, vocab_size=VOCAB),),
    attention=AttentionSpec(D, 2, USER_K, D, ROWS, 0),
    dnn=DnnSpec((5,), ("relu",), False),
    max_len=EVENTS,
    num_layers=LAYERS,
)


def entries(ids: Array) -> Arrays:
    """A cache that depends on the id alone: [B, L, S(, width)]."""
    layer = np.arange(LAYERS)[None, :, None]
    each = ids[:, None, :] * (layer + 1)
    waves = np.sin(each[..., None] + np.arange(D))
    return {
        "cache_k_index": (each % ROWS).astype(np.int32),
        "cache_k_user": waves[..., :USER_K].astype(np.float32),
        "cache_v_user": np.cos(waves).astype(np.float32),
    }


class Cache(Runner):
    """A prefill graph that answers `entries`, and notes how many users it was given at a time."""

    def __init__(self) -> None:
        super().__init__(prefill_io(SPEC, FEATURES))
        self.batches: list[int] = []

    def _activate(self) -> None:
        pass

    def _deactivate(self) -> None:
        pass

    def _infer(self, feeds: Mapping[str, Array]) -> Arrays:
        self.batches.append(len(feeds["event_mask"]))
        return entries(feeds["event_item_id"])

    def _describe(self) -> RunnerMetadata:
        return RunnerMetadata("test", "0", "cpu", "prefill")


@pytest.fixture
def subject(rng: np.random.Generator) -> Subject:
    pools = {
        (layer, "k"): rng.standard_normal((ROWS, D - USER_K)).astype(np.float32)
        for layer in range(LAYERS)
    }
    return Subject("toy", SPEC, FEATURES, "ab" * 32, Cache(), pools, None)


@pytest.fixture
def events(rng: np.random.Generator) -> Arrays:
    """Users with histories of every length, padded on the left, some with none."""
    lengths = rng.integers(0, EVENTS + 1, USERS)
    mask = np.arange(EVENTS) >= EVENTS - lengths[:, None]
    ids = np.where(mask, rng.integers(1, VOCAB, mask.shape), 0).astype(np.int32)
    return {"event_item_id": ids, "event_mask": mask}


def test_occupancy_counts_real_events_of_all_batches(subject: Subject, events: Arrays):
    measurement = Measurement(subject)
    measurement.run(events)
    occupancy = measurement.occupancy()
    assert [(use.side, use.layer) for use in occupancy] == [("k", n) for n in range(LAYERS)]
    assert len(subject.prefill.batches) > 1
    assert sum(subject.prefill.batches) == USERS
    index = entries(events["event_item_id"])["cache_k_index"]
    for layer, use in enumerate(occupancy):
        counts = [0] * ROWS
        for user, event in itertools.product(range(USERS), range(EVENTS)):
            if events["event_mask"][user, event]:
                counts[index[user, layer, event]] += 1
        assert use.sorted_counts.tolist() == sorted(counts, reverse=True)
        assert use.events == events["event_mask"].sum()
        assert use.rows_used == sum(count > 0 for count in counts)


def test_spectra_are_of_pool_row_and_user_part(subject: Subject, events: Arrays):
    """K: the layer's own pool, then the user part. V: no pool, all of it is cached."""
    measurement = Measurement(subject)
    measurement.run(events)
    cache = entries(events["event_item_id"])
    spectra = {(s.layer, s.side): s for s in measurement.spectra()}
    assert list(spectra) == list(itertools.product(range(LAYERS), "kv"))
    for (layer, side), spectrum in spectra.items():
        vectors = []
        for user, event in itertools.product(range(USERS), range(EVENTS)):
            if not events["event_mask"][user, event]:
                continue
            cached = cache[f"cache_{side}_user"][user, layer, event]
            if side == "k":
                row = subject.pools[layer, "k"][cache["cache_k_index"][user, layer, event]]
                cached = np.concatenate([row, cached])
            vectors.append(cached)
        values = np.linalg.svd(np.array(vectors, np.float64), compute_uv=False)
        np.testing.assert_allclose(spectrum.singular_values, values, rtol=1e-5, atol=1e-5)
        assert spectrum.users == USERS
        assert spectrum.pool_width == (D - USER_K if side == "k" else None)


@pytest.mark.parametrize("form", ["sim", "eta", "hstu"])
def test_pools_of_a_bundle_are_the_models(shops: Callable[[str], Shop], form: str, tmp_path: Path):
    """Both sides, one side, several layers; with the weights in a file of their own too."""
    shop = shops(form)
    expected = build_model(shop.spec, shop.state).pools()
    apart = shutil.copytree(shop.folder, tmp_path / "apart")
    decode = onnx.load(apart / "decode.onnx")
    onnx.save_model(
        decode, apart / "decode.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    shop.manifest.with_files(apart).write(apart)
    for folder in (shop.folder, apart):
        pools = open_subject(folder).pools
        assert set(pools) == set(expected)
        for key, pool in pools.items():
            np.testing.assert_array_equal(pool, expected[key])


def test_items_that_have_no_id(tmp_path: Path, rng: np.random.Generator):
    """There is no item table to weigh; nor is there for a model of layers."""
    price = FeatureSpec("price", "item", "numeric", 3)
    for spec in (make_spec("sim", features=(price,)), SPEC):
        state = draw_state(spec, rng) if spec.kind == "sim" else initial_state(spec, 0)
        save_native(tmp_path / "model.pt", spec, state)
        assert open_subject(tmp_path / "model.pt").item_table is None


def test_a_report_on_a_file_names_it(subject: Subject, events: Arrays, tmp_path: Path):
    path = tmp_path / "clicks.npz"
    np.savez(path, **events)
    report = report_on(subject, path, seed=0, user_dtype="fp16", users=None)
    assert report.events == f"file clicks.npz, {USERS} users"
    assert len(report.occupancy) == LAYERS
    assert len(report.spectrum) == 2 * LAYERS


def test_generated_events_measure_no_occupancy(subject: Subject):
    report = report_on(subject, None, seed=4, user_dtype="fp16", users=None)
    assert report.occupancy is None
    assert "generated" in report.events
    assert "seed 4" in report.events
    assert report.spectrum[0].events > 0


def test_events_of_another_model(subject: Subject, events: Arrays, tmp_path: Path):
    np.savez(tmp_path / "clicks.npz", **events | {"event_item_id": events["event_item_id"] + VOCAB})
    with pytest.raises(EventsError, match="item_id"):
        report_on(subject, tmp_path / "clicks.npz", seed=0, user_dtype="fp16", users=None)
    assert subject.prefill.batches == []

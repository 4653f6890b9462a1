"""Checkpoints of the paper authors' own code: their recorded scores, from our ONNX files."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from ckv_testing.exports import one_thread

from ckv_export.checkpoint.load import Checkpoint, load_checkpoint
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.parameters import check_state
from ckv_export.model.registry import build_model
from ckv_export.onnx_export.export import export_graph
from ckv_export.onnx_export.save import save_models
from ckv_export.runtimes.base import Array, Arrays
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner

SAMPLES = ("sim_micro", "sim_ebnerd", "sdim_micro")
APPENDED = (0, 1, 3)
SCORE = 1e-6  # what the samples' README asks for


@dataclasses.dataclass(frozen=True)
class Sample:
    """One checkpoint, its two graphs running in ONNX Runtime, and what was recorded."""

    checkpoint: Checkpoint
    prefill: OnnxRuntimeRunner
    decode: OnnxRuntimeRunner
    golden: Arrays

    def case(self, name: str) -> Arrays:
        """The arrays of one case, ``in/mask`` and so on."""
        start = f"{name}/"
        return {k.removeprefix(start): a for k, a in self.golden.items() if k.startswith(start)}

    def cases(self) -> list[str]:
        """Names of all recorded cases."""
        return sorted({name.split("/")[0] for name in self.golden})

    def requests(self, case: Arrays, appended: int) -> tuple[Arrays, Arrays]:
        """Feeds of prefill and, but for the cache, decode: it gets the newest `appended`."""
        spec = self.checkpoint.spec
        mask = case["in/mask"].astype(bool)
        known = mask.shape[1] - appended
        prefill: Arrays = {"event_mask": mask[:, :known]}
        decode: Arrays = {"history_mask": mask[:, :known], "append_mask": mask[:, known:]}
        for feature in spec.item_features:
            values = case[f"in/item/{feature.name}"].astype(feature.dtype)
            prefill[f"event_{feature.name}"] = values[:, :known]
            decode[f"history_{feature.name}"] = values[:, :known]
            decode[f"append_{feature.name}"] = values[:, known:-1]
            decode[f"candidate_{feature.name}"] = values[:, -1:]
        for feature in spec.user_features:
            decode[f"user_{feature.name}"] = case[f"in/ctx/{feature.name}"].astype(feature.dtype)
        return contiguous(prefill), contiguous(decode)

    def serve(self, name: str, appended: int) -> tuple[Array, Arrays]:
        """Scores [B, 1], and the entries of all events [B, L, ...]."""
        given, request = self.requests(self.case(name), appended)
        cache = self.prefill.infer(given)
        known = given["event_mask"].shape[1]
        kept = known - self.checkpoint.spec.cached_events(known)
        window = {name: array[:, :, kept:] for name, array in cache.items()}
        answer = self.decode.infer(request | contiguous(window))
        score = answer.pop("score")
        new = {n.replace("append", "cache", 1): a for n, a in answer.items()}
        return score, {n: np.concatenate([a, new[n]], axis=2)[:, 0] for n, a in cache.items()}


def contiguous(arrays: Arrays) -> Arrays:
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def sample(
    samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Sample]]:
    """A sample by name, exported at the first call."""
    with ExitStack() as active:

        @functools.cache
        def get(name: str) -> Sample:
            folder = tmp_path_factory.mktemp(name)
            checkpoint = load_checkpoint(samples / name)
            check_state(checkpoint.spec, checkpoint.state)
            model = build_model(checkpoint.spec, checkpoint.state)
            graphs = (PrefillGraph(model), DecodeGraph(model))
            with one_thread():
                save_models({g.io.name: export_graph(g) for g in graphs}, folder)
            prefill, decode = (
                active.enter_context(OnnxRuntimeRunner(folder / f"{g.io.name}.onnx", g.io))
                for g in graphs
            )
            with np.load(samples / name / "golden.npz") as golden:
                return Sample(checkpoint, prefill, decode, dict(golden))

        yield get


BOTH = pytest.mark.parametrize(("name", "appended"), [(n, t) for n in SAMPLES for t in APPENDED])


@BOTH
def test_scores_are_the_recorded_ones(name: str, appended: int, sample: Callable[[str], Sample]):
    here = sample(name)
    compared = 0
    for case in here.cases():
        recorded = here.case(case)
        if "out/y_pred" not in recorded or recorded["in/mask"].shape[1] < appended:
            continue
        expected = recorded.get("alt/y_pred_tie_low", recorded["out/y_pred"])
        score, _ = here.serve(case, appended)
        np.testing.assert_allclose(score, expected, rtol=0, atol=SCORE, err_msg=case)
        compared += 1
    assert compared >= 15, "the recorded cases are not those the README lists"


@BOTH
def test_rows_and_user_parts_are_the_recorded_ones(
    name: str, appended: int, sample: Callable[[str], Sample]
):
    """Of the events in the short window: rows exactly, user parts after their second silu."""
    here = sample(name)
    compared = 0
    for case in here.cases():
        recorded = here.case(case)
        if "int/K_idx" not in recorded or recorded["in/mask"].shape[1] < appended:
            continue
        _, entries = here.serve(case, appended)
        for side in "kv":
            index = recorded[f"int/{side.upper()}_idx"]
            first = entries[f"cache_{side}_index"].shape[1] - index.shape[1]
            got = entries[f"cache_{side}_index"][:, first:]
            np.testing.assert_array_equal(got, index, err_msg=case)
            user = recorded[f"int/usr_{side}"].astype(np.float64)
            np.testing.assert_allclose(
                entries[f"cache_{side}_user"][:, first:],
                user / (1 + np.exp(-user)),
                # Up to 3 in size: an fp32 sum of 96 products in another order is off by 2e-6.
                rtol=1e-6,
                atol=1e-6,
                err_msg=case,
            )
        compared += 1
    assert compared >= 15


@pytest.mark.parametrize("name", SAMPLES)
def test_what_their_code_cannot_score_ours_can(name: str, sample: Callable[[str], Sample]):
    """Several users with a window of one event crash it; there is nothing recorded to compare."""
    here = sample(name)
    failing = [c for c in here.cases() if "out/y_pred" not in here.case(c)]
    assert failing == ["b7_L1"]
    for case, appended in ((c, t) for c in failing for t in (0, 1)):
        score, _ = here.serve(case, appended)
        assert score.shape == (7, 1)
        assert np.isfinite(score).all()
        assert ((score > 0) & (score < 1)).all()
        alone = here.case(case)
        for row in range(7):
            single = {n: a[row : row + 1] for n, a in alone.items()}
            given, request = here.requests(single, appended)
            cache = contiguous(here.prefill.infer(given))
            one = here.decode.infer(request | cache)["score"]
            np.testing.assert_allclose(one[0], score[row], rtol=0, atol=SCORE)

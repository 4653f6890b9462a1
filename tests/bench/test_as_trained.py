"""Decode by the training code's layers, against the unsplit reference."""

from __future__ import annotations

import numpy as np
import pytest
from ckv_testing.draw import KINDS, VARIANTS, make_spec

from ckv_export.bench.as_trained import TrainedDecode
from ckv_export.bench.roster import reference_scores
from ckv_export.bench.ways import last_entries
from ckv_export.bench.workload import Sizes, draw_request
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.reference import Reference
from ckv_export.model.registry import build_model
from ckv_export.parity.compare import compare_values
from ckv_export.parity.tolerances import tolerance_of
from ckv_export.runtimes.torch import TorchRunner
from ckv_export.training.initial import initial_state

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_entries_are_the_models(
    kind: str, variant: str, seed: int, rng: np.random.Generator
):
    """Histories around window and top-k, padded ones; weights without ties."""
    spec = make_spec(kind, variant)
    state = initial_state(spec, seed)
    model, reference = build_model(spec, state), Reference(spec, state)
    prefill, split = (TorchRunner(g, g.io) for g in (PrefillGraph(model), DecodeGraph(model)))
    trained = TrainedDecode(reference)
    graphs = {"prefill": prefill.io, "decode": trained.io}
    for length, appended in ((1, 0), (3, 1), (4, 0), (5, 1), (8, 3), (20, 0), (20, 2)):
        sizes = Sizes(2, length, appended, 7)
        request = draw_request(spec, graphs, sizes, rng, (length, length // 2))
        with prefill, split, TorchRunner(trained, trained.io) as runner:
            made = prefill.infer(request.prefill_feeds(prefill.io, spec))
            feeds = request.decode_feeds(trained.io, last_entries(spec, made))
            got, entries = runner.infer(feeds), split.infer(feeds)
        score = got.pop("score")
        expected = reference_scores(reference, request.inputs)
        assert np.ptp(expected) > 1e-4
        for name, array in {"score": score, **got}.items():
            wanted = expected if name == "score" else entries[name]
            if name.endswith("_index"):
                np.testing.assert_array_equal(array, wanted, err_msg=name)
            else:
                result = compare_values(f"{sizes}", name, array, wanted, [tolerance_of(name)])
                assert result.passed, result.sentence()

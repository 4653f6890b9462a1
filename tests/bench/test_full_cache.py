"""The rival with the uncompressed cache passes the gate that every graph passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ckv_testing.exports import drawn

from ckv_export.bench.full_cache import FullDecodeGraph, whole_cache
from ckv_export.bench.ways import last_entries
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.registry import build_model
from ckv_export.parity.tolerances import tolerance_of
from ckv_export.runtimes.torch import TorchRunner

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", ["sim", "sdim"])
def test_scores_and_appended_vectors_are_the_models(kind: str, seed: int, tmp_path: Path):
    made = drawn(kind, tmp_path, seed)
    model = build_model(made.spec, made.state)
    prefill, full = PrefillGraph(model), FullDecodeGraph(model)
    bound = tolerance_of("score").absolute
    for case in made.cases:
        inputs = case.case.inputs
        compact = {n: a for n, a in case.outputs.items() if n.startswith("cache_")}
        kept = whole_cache(model, last_entries(made.spec, compact))
        runner = TorchRunner(full, full.io)
        with runner:
            given = inputs | kept
            got = runner.infer({t.name: given[t.name] for t in full.io.inputs})
        np.testing.assert_allclose(got["score"], case.outputs["score"], rtol=0, atol=bound)
        appended = {
            n.replace("append", "cache"): a
            for n, a in case.outputs.items()
            if n.startswith("append_")
        }
        for name, array in whole_cache(model, appended).items():
            np.testing.assert_allclose(
                got[name.replace("cache", "append")], array, rtol=1e-5, atol=2e-6
            )
    assert isinstance(prefill.model.attentions[0].k.user, torch.nn.Module), "the model is unharmed"
    assert model.cache != full.model.cache

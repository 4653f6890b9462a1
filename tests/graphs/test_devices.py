"""Split modules run where their weights lie: what they make on the way lies there too.

On PyTorch's meta device, which has shapes and no numbers, and which refuses a tensor of the CPU as
a GPU does.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ckv_testing import hstu_models
from ckv_testing.draw import draw_state
from ckv_testing.exports import VARIANTS

from ckv_export.bench.full_cache import FullDecodeGraph
from ckv_export.contract import ModelSpec
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.registry import build_model

SPECS = {**VARIANTS, **{name: hstu_models.make_spec(name) for name in hstu_models.VARIANTS}}
SIZES = {"B": 2, "S": 6, "T": 2, "C": 5}


@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_outputs_are_made_where_the_weights_lie(spec: ModelSpec, rng: np.random.Generator):
    draw = hstu_models.draw if spec.kind == "hstu" else draw_state
    model = build_model(spec, {name: t.float() for name, t in draw(spec, rng).items()}).to("meta")
    sizes = SIZES | {"K": spec.cached_events(SIZES["S"])}
    for graph in (PrefillGraph(model), DecodeGraph(model), FullDecodeGraph(model)):
        inputs = [
            torch.empty(t.shape(sizes), dtype=getattr(torch, t.dtype), device="meta")
            for t in graph.io.inputs
        ]
        with torch.inference_mode():
            outputs = graph(*inputs)
        for tensor, output in zip(graph.io.outputs, outputs, strict=True):
            assert output.is_meta, tensor.name
            assert output.shape == tensor.shape(sizes), tensor.name

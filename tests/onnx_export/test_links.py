"""Time buckets as ONNX Runtime counts them: whole numbers that fp32 would round are among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from ckv_export.model.links import log2_bucket
from ckv_export.onnx_export.functions import OPSET


class Buckets(torch.nn.Module):
    def forward(self, seconds: torch.Tensor) -> torch.Tensor:
        return log2_bucket(seconds)


def test_buckets_are_bit_lengths_around_every_power_of_two(
    tmp_path: Path, rng: np.random.Generator
):
    near = [2**k + d for k in range(31) for d in range(-130, 131)]
    drawn = rng.integers(-(2**31), 2**31, 3000) >> rng.integers(0, 32, 3000)
    seconds = np.array([*near, -(2**31), 2**31 - 1, *drawn])
    seconds = seconds[seconds < 2**31].astype(np.int32)
    example = (torch.from_numpy(seconds),)
    program = torch.onnx.export(Buckets(), example, opset_version=OPSET, dynamo=True, verbose=False)
    program.save(tmp_path / "buckets.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "buckets.onnx"))
    (got,) = session.run(None, {session.get_inputs()[0].name: seconds})
    assert got.tolist() == [max(int(s), 1).bit_length() - 1 for s in seconds]

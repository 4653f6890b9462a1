"""The example program with a real engine; what it prints is what ONNX Runtime computes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from ckv_testing.cmake import rtx_library
from ckv_testing.draw import PLAIN, draw_state, make_spec

from ckv_export.cache.record import RecordLayout, batch, encode, user_events
from ckv_export.checkpoint.native import save_native
from ckv_export.cli.main import main
from ckv_export.manifest import open_bundle
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner

EVENTS = 9
ITEMS = [1, 5, 7, 11, 29]


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture(scope="module")
def bundle(engine_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small SIM whose items have an id alone, with engines."""
    if rtx_library() is None:
        pytest.skip("no TensorRT library to link: pip install 'ckv-export[rtx]'")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("gpu")
    spec = make_spec("sim", features=PLAIN[:1])
    save_native(folder / "model.pt", spec, draw_state(spec, np.random.default_rng(3)))
    options = ["--build", "--backend", "tensorrt_rtx", "--no-parity"]
    assert main(["export", str(folder / "model.pt"), "--out", str(folder), *options]) == 0
    return folder / "model"


def score(build: Path, bundle: Path, record: Path) -> subprocess.CompletedProcess[str]:
    command = [build / "ckv_score", bundle, record, *ITEMS]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def prefilled(bundle: Path, rng: np.random.Generator) -> bytes:
    """The record of a user whose events ONNX Runtime has prefilled."""
    manifest = open_bundle(bundle)
    events = {
        "event_item_id": rng.integers(1, PLAIN[0].vocab_size, (1, EVENTS)).astype(np.int32),
        "event_mask": np.ones((1, EVENTS), bool),
    }
    with OnnxRuntimeRunner(bundle / "prefill.onnx", manifest.graph("prefill")) as prefill:
        tensors = events | prefill.infer(events)
    layout = RecordLayout.of(manifest, "float16")
    return encode(layout, user_events(layout, tensors, 0, graph="prefill"))


def test_scores_are_those_of_onnx_runtime(engine_build: Path, bundle: Path, tmp_path: Path, rng):
    data = prefilled(bundle, rng)
    (tmp_path / "record").write_bytes(data)
    done = score(engine_build, bundle, tmp_path / "record")
    assert done.returncode == 0, done.stderr
    manifest = open_bundle(bundle)
    feeds = batch(RecordLayout.of(manifest, "float16"), [data]) | {
        "append_item_id": np.zeros((1, 0), np.int32),
        "append_mask": np.zeros((1, 0), bool),
        "candidate_item_id": np.array([ITEMS], np.int32),
    }
    with OnnxRuntimeRunner(bundle / "decode.onnx", manifest.graph("decode")) as decode:
        wanted = decode.infer(feeds)["score"][0]
    printed = [line.split() for line in done.stdout.splitlines()]
    assert [int(item) for item, _ in printed] == ITEMS
    np.testing.assert_allclose([float(s) for _, s in printed], wanted, rtol=0, atol=1e-5)

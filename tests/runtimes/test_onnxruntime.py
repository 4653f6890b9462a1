"""What a session of ONNX Runtime decides for its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TINY = """
import sys
from pathlib import Path

import numpy as np
import onnx

from ckv_export.contract import GraphSpec, TensorSpec
from ckv_export.runtimes.onnxruntime import OnnxRuntimeRunner

path = Path(sys.argv[1])
text = '<ir_version: 10, opset_import: ["" : 20]> g (float[B] x) => (float[B] y) { y = Mul (x, x) }'
onnx.save(onnx.parser.parse_model(text), path)
x, y = (TensorSpec(name, "float32", ("B",)) for name in "xy")
with OnnxRuntimeRunner(path, GraphSpec("g", (x,), (y,)), threads=1) as runner:
    print(runner.infer({"x": np.full(3, 1e-20, np.float32)})["y"].tolist())
"""


def test_what_intel_s_processors_are_slow_with_is_zero(tmp_path: Path):
    """In a process of its own: the first session decides."""
    command = [sys.executable, "-c", TINY, str(tmp_path / "g.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "[0.0, 0.0, 0.0]\n", done.stderr

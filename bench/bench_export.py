"""What does exporting a model of the published size cost, stage by stage, in time and memory?

A CollectiveKV SIM with random weights: d 256, 8 heads, M 10000, d_u 2, three item fields 64 wide,
DNN 1024-512-256, window 50, top-k 50, histories up to 1000, and an item table of --items rows.
Run from the repository's root:

    python bench/bench_export.py --items 1700000 --json bench/results/export.json

The export runs as a process of its own. Peak memory is that process's largest resident set: with
the interpreter and PyTorch, which are measured by themselves beside it, and with pages of files
that are mapped rather than copied.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ckv_export.bench.environment import environment
from ckv_export.checkpoint.native import save_native
from ckv_export.contract import AttentionSpec, DnnSpec, FeatureSpec, ModelSpec
from ckv_export.model.parameters import expected_shapes

SCHEMA_VERSION = 1
WIDTH = 64


def published_spec(items: int) -> ModelSpec:
    """SIM with the settings of the paper's MicroVideo runs, at d 256."""
    return ModelSpec(
        kind="sim",
        features=(
            FeatureSpec("item_id", "item", "categorical", WIDTH, vocab_size=items),
            FeatureSpec("cate_id", "item", "categorical", WIDTH, vocab_size=514),
            FeatureSpec("image", "item", "vector", WIDTH, length=WIDTH),
        ),
        attention=AttentionSpec(256, 8, 2, 2, 10000, 10000),
        dnn=DnnSpec((1024, 512, 256), ("relu",) * 3, batch_norm=True),
        max_len=1000,
        window=50,
        options={"topk": 50},
    )


def random_state(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """Weights of every expected shape, scaled by fan-in; variances positive."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in expected_shapes(spec).items():
        tensor = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        state[name] = tensor.abs() + 0.5 if name.endswith(".var") else tensor
    return state


# A process counts the memory of the one it was forked from: a small one must start the command.
LAUNCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:], stdout=2)
_, status, usage = os.wait4(process.pid, 0)
open(sys.argv[1], "w").write(f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss * 1024}")
"""


def run(command: list[str], scratch: Path) -> tuple[int, float, int]:
    """Exit code, wall-clock seconds and peak resident bytes of a command."""
    outcome = scratch / "outcome.txt"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-S", "-c", LAUNCHER, str(outcome), *command], check=True)
    code, peak = (int(word) for word in outcome.read_text().split())
    return code, time.perf_counter() - start, peak


def measure(items: int) -> dict[str, object]:
    """Write the checkpoint, export it, read the bundle's own timings."""
    spec = published_spec(items)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "published.pt"
        save_native(checkpoint, spec, random_state(spec))
        size = checkpoint.stat().st_size
        python = [sys.executable, "-c", "import torch, onnx, onnxruntime, ckv_export.cli.main"]
        _, _, idle = run(python, Path(folder))
        command = [sys.executable, "-m", "ckv_export", str(checkpoint), f"--out={folder}/out"]
        code, seconds, peak = run(command, Path(folder))
        if code:
            raise SystemExit(f"the export failed with exit code {code}")
        manifest = json.loads((Path(folder) / "out/published/manifest.json").read_text())
        files = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    return {
        "items": items,
        "checkpoint_bytes": size,
        "wall_seconds": round(seconds, 2),
        "stage_seconds": manifest["timings"],
        "peak_bytes": peak,
        "peak_over_checkpoint": round(peak / size, 3),
        "interpreter_bytes": idle,
        "bundle_bytes": files,
        "worst_score_error": manifest["parity"]["worst_score_error"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_700_000, help="rows of the item table")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    result = {"schema_version": SCHEMA_VERSION} | environment() | {"result": measure(args.items)}
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

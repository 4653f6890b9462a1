"""What do half precisions cost in fidelity: flips, score errors, ranking?

Each checkpoint is exported in fp32, fp16 and bf16; every runtime here is compared with the unsplit
fp32 reference on the same drawn requests. For contrast, "<precision>, router too" is the split
model in PyTorch with the routers' products in that precision as well, which no bundle has. Run from
the repository's root:

    python bench/bench_fidelity.py MODEL [MODEL ...] --json bench/results/fidelity.json

A MODEL is a checkpoint, or ``demo-hstu`` for the demo's two layers, trained on the spot.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ckv_export.bench.environment import environment
from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.contract import FEATURES, ModelSpec
from ckv_export.deploy.bundle import ExportRequest, export_bundle
from ckv_export.deploy.fidelity import FidelityRequest, check_fidelity
from ckv_export.deploy.prepare import FormRequest
from ckv_export.events import load_requests
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model import ops
from ckv_export.model.collective import Router
from ckv_export.model.precision import DTYPES
from ckv_export.model.registry import build_model, build_reference
from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.expected import record as answer
from ckv_export.parity.gate import judge
from ckv_export.parity.inputs import CaseSize, generate_case
from ckv_export.parity.ranking import ranking_report
from ckv_export.parity.real import draw_cases
from ckv_export.parity.routing import routing_report
from ckv_export.runtimes.torch import TorchRunner
from ckv_export.stages import Stages
from ckv_export.training.demo import train_demo

SCHEMA_VERSION = 1
EVENTS, CANDIDATES, TOP = 100, 20, 10


def requests_file(spec: ModelSpec, users: int, path: Path) -> Path:
    """Histories of up to `EVENTS` events with uniform ids, `CANDIDATES` each."""
    size = CaseSize("x", users, min(spec.max_len, EVENTS), 0, CANDIDATES)
    given = generate_case(spec, size, np.random.default_rng(0)).inputs
    kept = {n: a for n, a in given.items() if not n.startswith("append_")}
    np.savez(path, **{n.replace("history_", "event_", 1): a for n, a in kept.items()})
    return path


def exported(model: Path, out: Path, precision: str) -> Path:
    """A bundle of that precision."""
    form = FormRequest(precision=precision)
    request = ExportRequest(model=model, out=out, name=precision, form=form)
    return export_bundle(request, Stages(), lambda: None).folder


def lowered(spec: ModelSpec, state: Any, precision: str) -> tuple[TorchRunner, TorchRunner]:
    """The split model with its routers in that precision too."""

    class LowRouter(Router):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.logits.weight.to(DTYPES[precision])
            logits = (x.to(weight.dtype) @ weight).float()
            return ops.first_argmax(logits, self.groups).clamp(max=self.rows - 1)

    model = build_model(spec, state, precision=precision)
    for module in model.modules():
        if isinstance(module, Router):
            module.__class__ = LowRouter
    graphs = PrefillGraph(model), DecodeGraph(model)
    return tuple(TorchRunner(graph, graph.io) for graph in graphs)


def told(name: str, passed: bool, routing: Any, ranking: Any) -> dict[str, Any]:
    """A row of the result."""
    return {"runtime": name, "passed": passed, "routing": routing, "ranking": ranking}


def of_bundle(bundle: Path, model: Path, events: Path, users: int) -> list[dict[str, Any]]:
    """What every runtime makes of a bundle."""
    request = FidelityRequest(bundle, checkpoint=model, events=events, users=users, top=TOP)
    report = check_fidelity(request, Stages()).to_dict()
    return [told(r["name"], r["passed"], r["routing"], r["ranking"]) for r in report["runtimes"]]


def of_lowered(spec: ModelSpec, state: Any, precision: str, cases: list[ExpectedCase]) -> list:
    """What lowered routers make of it."""
    outcome = judge(spec, *lowered(spec, state, precision), cases, precision)
    routing, ranking = routing_report(outcome.runs), ranking_report(outcome.runs, TOP)
    return [told("pytorch", outcome.passed, routing.to_dict(), ranking.to_dict())]


def measure(model: Path, name: str, users: int, folder: Path) -> dict[str, Any]:
    """All precisions of one checkpoint."""
    checkpoint = load_checkpoint(model)
    spec, state = checkpoint.spec, checkpoint.state
    events = requests_file(spec, users, folder / "requests.npz")
    rows = {
        precision: of_bundle(exported(model, folder, precision), model, events, users)
        for precision in DTYPES
    }
    asked = draw_cases(load_requests(events, spec), spec, FEATURES, 0, users)
    cases = answer(build_reference(spec, state), asked)
    for precision in list(DTYPES)[1:]:
        rows[f"{precision}, router too"] = of_lowered(spec, state, precision, cases)
    pools = {side: spec.attention.pool_rows(side) for side in "kv"}
    about = {
        "kind": spec.kind,
        "layers": spec.num_layers,
        "d": spec.attention.d,
        "pool_rows": pools,
    }
    return {"model": name, **about, "users": users, "precisions": rows}


def main() -> None:
    """Measure every checkpoint given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results, where = [], environment()
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(name)
            if name == "demo-hstu":
                path = Path(folder) / "demo-hstu.pt"
                train_demo("hstu", path)
            results.append(measure(path, path.stem, args.users, Path(folder)))
    facts = {"schema_version": SCHEMA_VERSION, "environment": where, "results": results}
    text = json.dumps(facts, indent=1)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

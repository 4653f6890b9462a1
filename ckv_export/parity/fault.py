"""From a failure of the gate to the node that causes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ckv_export.cache.pool_file import load_pools
from ckv_export.contract import GraphSpec
from ckv_export.manifest import Manifest
from ckv_export.parity.compare import TensorResult
from ckv_export.parity.gate import EVERY_CASE, RuntimeResult
from ckv_export.parity.localize import Divergence, Localizer
from ckv_export.parity.probe import GraphProbe
from ckv_export.parity.replay import (
    CaseRun,
    chunks,
    decode_feeds,
    forced_entries,
    prefill_feeds,
)
from ckv_export.parity.rerouted import excused_logits
from ckv_export.runtimes.base import Array, Arrays
from ckv_export.runtimes.bound import without


@dataclass(frozen=True)
class Believed:
    """Graphs that are taken to be right: where they lie, and what they are, for a sentence.

    `pools`: those that they take as inputs; `precision`: theirs.
    """

    folder: Path
    title: str
    pools: Mapping[str, Array]
    optimised: bool = True
    precision: str = "fp32"


def unoptimised(folder: Path, manifest: Manifest) -> Believed:
    """A bundle's own graphs, for want of others."""
    title = "the same file run without graph optimisations"
    return Believed(folder, title, load_pools(folder, manifest), False, manifest.precision)


def localize(
    folder: Path,
    manifest: Manifest,
    outcome: RuntimeResult,
    believed: Believed,
    table: Mapping[str, Array] | None,
) -> Divergence | str:
    """The first node that differs in the case that failed first, or the one nearest to failing.

    A sentence where no node differs.
    """
    result = _telling(outcome)
    run = next((r for r in outcome.runs if result and _is_of(result, r)), None)
    if result is None or run is None:
        return "nothing was compared: there is no case to look into"
    graph, feeds = _feeds(manifest, run, result, table)
    if not (believed.folder / f"{graph}.onnx").exists():
        return f"{graph}: {believed.folder} was exported without such a graph to compare with"
    probes = (
        GraphProbe(folder / f"{graph}.onnx", precision=manifest.precision),
        GraphProbe(believed.folder / f"{graph}.onnx", believed.optimised, believed.precision),
    )
    given = feeds | load_pools(folder, manifest), feeds | dict(believed.pools)
    localizer = Localizer(*probes, manifest.precision)
    spec = manifest.model
    routed = graph == "decode" and spec.layers_see_history
    candidates = run.case.outputs["score"].shape[1] if routed else 0
    excused = excused_logits(*probes, *given, spec, manifest.precision, candidates)
    found = localizer.first(*given, excused)
    if found is None and _too_much_excused(outcome):
        found = localizer.first(*given)
    if found is None:
        return (
            f"{graph}: in case {run.case.case.name!r} no tensor differs from {believed.title} by "
            f"more than rounding{_hint(outcome, believed)}"
        )
    step, tensor, off = found
    where = (graph, run.case.case.name, step.title, step.op, tensor)
    return Divergence(*where, off.error, off.allowed, believed.title)


def _hint(outcome: RuntimeResult, believed: Believed) -> str:
    if outcome.passed:
        return ""
    runs_wrongly = f"{outcome.name or outcome.runtime.runtime} runs it wrongly"
    if believed.optimised:
        return f": the file is right, and {runs_wrongly}"
    # What ONNX Runtime computes on the CPU has just been found to be what the file says.
    other = "" if outcome.name == "onnxruntime-cpu" else f", or {runs_wrongly}"
    return (
        f": its weights or its structure are wrong{other}; give --checkpoint or --against to find "
        "out where"
    )


def _telling(outcome: RuntimeResult) -> TensorResult | None:
    """The first failure: of one about all cases, the case that has the largest part in it."""
    failure = outcome.first_failure
    if failure is None or failure.case != EVERY_CASE:
        return failure or _worst(outcome)
    same = [r for r in outcome.each_case if r.tensor == failure.tensor]
    return max(same, key=lambda r: r.explained if failure.explained else r.mean)


def _too_much_excused(outcome: RuntimeResult) -> bool:
    failure = outcome.first_failure
    return failure is not None and failure.case == EVERY_CASE and failure.explained > 0


def _worst(outcome: RuntimeResult) -> TensorResult | None:
    scores = [r for r in outcome.results if r.tensor == "score"]
    return max(scores, key=lambda r: r.error / r.allowed if r.allowed else 0.0, default=None)


def _is_of(result: TensorResult, run: CaseRun) -> bool:
    name = run.case.case.name
    return result.case == name or result.case.startswith(
        (f"{name}, prefill in", f"{name}, by item")
    )


def _feeds(
    manifest: Manifest, run: CaseRun, result: TensorResult, table: Mapping[str, Array] | None
) -> tuple[str, Arrays]:
    """The graph that made a result, and what it was fed."""
    case, spec = run.case, manifest.model
    if result.case.endswith("by item table") and table is not None:
        graph = _fed(manifest, "decode_items")
        given = case.case.inputs | dict(table)
        return graph.name, {t.name: given[t.name] for t in graph.inputs}
    if result.tensor.startswith("cache_"):
        chunked = result.case != case.case.name
        part = chunks(case)[1] if chunked else slice(0, case.case.cached)
        return "prefill", prefill_feeds(_fed(manifest, "prefill"), case, part)
    cache = forced_entries(spec, case, run.chunked or run.cache)
    return "decode", decode_feeds(_fed(manifest, "decode"), case, cache)


def _fed(manifest: Manifest, graph: str) -> GraphSpec:
    """A graph without the pools that are bound to it."""
    spec = manifest.model
    pools = {t.name for t in manifest.form.pool_tensors(spec, spec.num_layers)}
    return without(manifest.graph(graph), pools)

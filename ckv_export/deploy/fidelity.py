"""The fidelity of a finished bundle: every runtime, real events, steps, and where it goes wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckv_export.cache.item_table import load_item_table
from ckv_export.cache.pool_file import load_pools
from ckv_export.checkpoint.load import Checkpoint, load_checkpoint
from ckv_export.contract import FEATURES
from ckv_export.deploy.judge import given_pools
from ckv_export.deploy.prepare import FormRequest, Prepared, prepare
from ckv_export.deploy.twins import require_twin
from ckv_export.errors import BundleError, CheckpointError, InputError
from ckv_export.events import load_requests
from ckv_export.manifest import Manifest, open_bundle
from ckv_export.model.fingerprint import fingerprint
from ckv_export.model.registry import build_reference
from ckv_export.onnx_export.export import export_graph
from ckv_export.onnx_export.save import save_models
from ckv_export.parity import inputs
from ckv_export.parity.bundle import judge_lineup, recorded_cases
from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.fault import Believed, localize, unoptimised
from ckv_export.parity.gate import RuntimeResult
from ckv_export.parity.inputs import Case
from ckv_export.parity.lineup import PYTORCH, Contender, Lineup, line_up, restricted
from ckv_export.parity.localize import Divergence
from ckv_export.parity.real import draw_cases
from ckv_export.parity.report import TOP, ParityReport
from ckv_export.parity.steps import StepsReport, many_steps, plan
from ckv_export.parity.truth import RECORDED, GraphTruth, ReferenceTruth, Truth
from ckv_export.runtimes.base import Runner
from ckv_export.runtimes.bound import BoundRunner
from ckv_export.runtimes.torch import TorchRunner
from ckv_export.stages import Stages

USERS = 64


@dataclass(frozen=True)
class FidelityRequest:
    """What the user asked for.

    `runtimes`: names of `parity.lineup`, none for all; `checkpoint` (`weights`, `params`: see
    `load_checkpoint`) or else `against`, another bundle of the model: who is believed; `events`,
    `labels`: files of real requests, of which `users` are drawn; `steps`: requests one after
    another; `localize`: look for the node that differs first, failure or not.
    """

    bundle: Path
    runtimes: tuple[str, ...] = ()
    checkpoint: Path | None = None
    weights: str | None = None
    params: str | None = None
    against: Path | None = None
    events: Path | None = None
    labels: Path | None = None
    users: int = USERS
    seed: int | None = None
    top: int = TOP
    steps: int = 0
    localize: bool = False


@dataclass(frozen=True)
class _Subject:
    """A bundle, the checkpoint it must come from, and who is believed (None: what it recorded)."""

    request: FidelityRequest
    manifest: Manifest
    checkpoint: Checkpoint | None
    truth: Truth | None


def check_fidelity(request: FidelityRequest, stages: Stages) -> ParityReport:
    """Compare every runtime with the truth; the report says whether it passed.

    Raises `InputError` for what doesn't fit together, for a runtime that was asked for by name and
    can't run here, and where none can.
    """
    subject = _open(request, stages)
    manifest, folder = subject.manifest, request.bundle
    lineup = _lineup(subject)
    with stages.stage("parity: the truth") as stage:
        asked, cases, described = _cases(subject)
        planned = plan(asked, request.steps) if request.steps else []
        truth = RECORDED if subject.truth is None else subject.truth.name
        stage.remark = f"{len(cases)} cases from {truth}"
    by_name = bool(request.runtimes)
    outcomes, not_run = judge_lineup(folder, manifest, cases, lineup, by_name, stages)
    if not outcomes:
        reasons = "; ".join(f"{name}: {why}" for name, why in not_run.items())
        raise InputError(f"no runtime can run {folder} here, so nothing is proven ({reasons})")
    return ParityReport.of(
        manifest,
        cases,
        outcomes,
        not_run,
        seed=_seed(subject),
        truth=truth,
        inputs=described,
        top=request.top,
        steps=_steps(subject, lineup, outcomes, planned, stages),
        localized=_localized(subject, outcomes, stages),
    )


# -- what is compared with what


def _open(request: FidelityRequest, stages: Stages) -> _Subject:
    with stages.stage("verify hashes") as stage:
        manifest = open_bundle(request.bundle)
        stage.remark = f"{len(manifest.files)} files"
    if None not in (request.checkpoint, request.against) and not request.localize:
        raise InputError(
            "--checkpoint and --against both say who is believed: leave one out (with --localize "
            "the first judges, and the second's graph is what a node is compared with)"
        )
    twin = None if request.against is None else _twin(request.against, manifest)
    if request.checkpoint is None:
        if request.events is not None and twin is None:
            raise InputError(
                "real events have no recorded answers: give --checkpoint MODEL, or --against an "
                "fp32 bundle of the same model, to be believed"
            )
        return _Subject(request, manifest, None, twin)
    checkpoint = _checkpoint(request, manifest)
    reference = build_reference(checkpoint.spec, checkpoint.state)
    source = request.checkpoint.name
    return _Subject(request, manifest, checkpoint, ReferenceTruth(reference, manifest.form, source))


def _checkpoint(request: FidelityRequest, manifest: Manifest) -> Checkpoint:
    assert request.checkpoint is not None
    checkpoint = load_checkpoint(request.checkpoint, weights=request.weights, params=request.params)
    identity = fingerprint(checkpoint.spec, checkpoint.state)
    if identity != manifest.fingerprint:
        raise CheckpointError(
            f"{request.checkpoint} is not the model of {request.bundle}: its fingerprint is "
            f"{identity[:16]}, the bundle's {manifest.fingerprint[:16]}"
        )
    return checkpoint


def _twin(folder: Path, manifest: Manifest) -> GraphTruth:
    other = open_bundle(folder)
    require_twin("--against", folder, other, manifest)
    if other.precision != "fp32":
        raise BundleError(f"--against takes an fp32 bundle, {folder} is {other.precision}")
    return GraphTruth(folder, other)


def _cases(subject: _Subject) -> tuple[list[Case], list[ExpectedCase], str]:
    """Requests in the truth's own terms, the same with the right answers, and their origin."""
    request, manifest, truth = subject.request, subject.manifest, subject.truth
    if request.events is not None:
        assert truth is not None
        asked, described = _real_cases(subject), f"users of {request.events.name}"
        return asked, truth.record(asked), described
    if request.labels is not None:
        raise InputError("--labels are of real events: give --events too")
    if request.seed is not None and truth is None:
        raise InputError(
            "--seed is of new cases, and only recorded ones have answers: give --checkpoint MODEL "
            "or --against BUNDLE too, or leave it out"
        )
    if request.seed is None or truth is None:
        recorded = recorded_cases(request.bundle, manifest)
        asked = [case.case for case in recorded]
        twin = isinstance(truth, GraphTruth)
        return asked, truth.record(asked) if truth and twin else recorded, "generated"
    if not _takes_features(manifest):
        raise InputError("--seed is for graphs that take a tensor per feature: leave it out")
    asked = inputs.generate(manifest.model, request.seed)
    return asked, truth.record(asked), "generated"


def _takes_features(manifest: Manifest) -> bool:
    """Whether the graphs are given what the reference is."""
    return manifest.form.embeddings == "inline" and not _looks_up(manifest)


def _looks_up(manifest: Manifest) -> bool:
    """Whether the graphs hold item features, which the checkpoint doesn't."""
    return not all(map(manifest.form.gives, manifest.model.embedded_item_features))


def _real_cases(subject: _Subject) -> list[Case]:
    request, manifest = subject.request, subject.manifest
    assert request.events is not None
    if subject.checkpoint is not None and _looks_up(manifest):
        raise InputError(
            "graphs that look item features up can be judged on real events by --against alone: "
            "the checkpoint doesn't hold the features they look up"
        )
    # The reference embeds features itself; graphs are given what they take.
    form = FEATURES if subject.checkpoint is not None else manifest.form
    found = load_requests(request.events, manifest.model, form, request.labels)
    return draw_cases(found, manifest.model, form, _seed(subject), request.users)


def _seed(subject: _Subject) -> int:
    given, parity = subject.request.seed, subject.manifest.parity
    return given if given is not None else int(parity["seed"]) if parity else 0


def _lineup(subject: _Subject) -> Lineup:
    request, manifest = subject.request, subject.manifest
    prepared = _prepared(subject, manifest.precision)
    pytorch = None if prepared is None else _in_pytorch(prepared)
    lineup = line_up(request.bundle, manifest, pytorch)
    if subject.checkpoint is not None and prepared is None:
        why = "its graphs look item features up from a file that the checkpoint doesn't hold"
        lineup = dataclasses.replace(lineup, not_run={**lineup.not_run, PYTORCH: why})
    return restricted(lineup, request.runtimes) if request.runtimes else lineup


def _in_pytorch(prepared: Prepared) -> Contender:
    def runners() -> list[Runner]:
        pools = given_pools(prepared)
        return [BoundRunner(TorchRunner(graph, graph.io), pools) for graph in prepared.graphs]

    return Contender(PYTORCH, runners)


def _prepared(subject: _Subject, precision: str) -> Prepared | None:
    """The split model as it was exported, or None where the checkpoint isn't all it needs."""
    manifest = subject.manifest
    if subject.checkpoint is None or _looks_up(manifest):
        return None
    form, table, rows = manifest.form, manifest.item_table is not None, manifest.item_rows
    # Without either, a key by which nothing is looked up changes no graph.
    key = form.item_key if table or rows else None
    asked = (form.embeddings, None, key, table, precision, manifest.pool, rows)
    return prepare(subject.checkpoint, FormRequest(*asked))


# -- beyond the gate


def _steps(
    subject: _Subject,
    lineup: Lineup,
    outcomes: Sequence[RuntimeResult],
    planned: Sequence[Case],
    stages: Stages,
) -> dict[str, StepsReport]:
    """Every judged runtime that can take the planned requests and be fed its own outputs."""
    if not planned:
        return {}
    manifest, truth = subject.manifest, subject.truth
    # Recorded cases of another form don't hold the features that the reference reads.
    readable = _takes_features(manifest) or subject.request.events is not None
    if truth is None or (isinstance(truth, ReferenceTruth) and not readable):
        truth = GraphTruth(subject.request.bundle, manifest)
    with stages.stage("many steps: the truth"):
        expected = truth.record(planned)
    judged = {o.name for o in outcomes if all(run.sound for run in o.runs)}
    found = {}
    for contender in (c for c in lineup.contenders if c.name in judged):
        with stages.stage(f"many steps: {contender.name}") as stage:
            if not all(contender.takes(manifest.model, step) for step in expected):
                stage.remark = "left out: they are beyond its profile"
                continue
            prefill, decode, *_ = contender.runners()
            report = many_steps(manifest.model, prefill, decode, expected, truth.name)
            found[contender.name] = report
            stage.remark = f"{len(report.steps)} requests"
    return found


def _localized(
    subject: _Subject, outcomes: Sequence[RuntimeResult], stages: Stages
) -> dict[str, Divergence | str]:
    wanted = [o for o in outcomes if subject.request.localize and o.name != PYTORCH]
    failed = [o for o in wanted if not o.passed] or wanted[:1]
    if not failed:
        return {}
    folder, manifest = subject.request.bundle, subject.manifest
    table = load_item_table(folder) if manifest.item_table else None
    with stages.stage("localize"), _believed(subject) as believed:
        return {o.name: localize(folder, manifest, o, believed, table) for o in failed}


@contextlib.contextmanager
def _believed(subject: _Subject) -> Iterator[Believed]:
    """The twin's graphs, or those of the checkpoint exported anew, or the bundle's, unoptimised."""
    request = subject.request
    if request.against is not None:
        pools = load_pools(request.against, open_bundle(request.against))
        yield Believed(request.against, f"the graph of {request.against}", pools)
        return
    prepared = _prepared(subject, "fp32")
    if prepared is None:
        yield unoptimised(request.bundle, subject.manifest)
        return
    with tempfile.TemporaryDirectory(prefix="ckv-export-") as folder:
        save_models({g.io.name: export_graph(g) for g in prepared.graphs}, Path(folder))
        title = f"the fp32 graph of {request.checkpoint}, exported anew"
        yield Believed(Path(folder), title, given_pools(prepared))

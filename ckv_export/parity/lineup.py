"""The runtimes that could run a bundle, and those that can't here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckv_export.cache.pool_file import load_pools
from ckv_export.contract import ModelSpec, Profile
from ckv_export.engine.backends import load
from ckv_export.engine.loading import built_for
from ckv_export.engine.targets import present_gpu
from ckv_export.errors import CkvError, InputError, nearest
from ckv_export.manifest import EngineEntry, Manifest
from ckv_export.parity.expected import ExpectedCase
from ckv_export.parity.replay import prefilled
from ckv_export.runtimes import onnxruntime as ort
from ckv_export.runtimes.base import Runner
from ckv_export.runtimes.bf16 import RoundedBf16Runner
from ckv_export.runtimes.bound import BoundRunner
from ckv_export.runtimes.tensorrt import TensorRtRunner

PROVIDERS = {
    "onnxruntime-cpu": ort.CPU,
    "onnxruntime-cuda": ort.CUDA,
    "onnxruntime-tensorrt": ort.TENSORRT,
}
ENGINES = ("tensorrt", "tensorrt_rtx")
PYTORCH = "pytorch"
NAMES = (PYTORCH, *PROVIDERS, *ENGINES)
"""What `--runtime` takes."""


@dataclass(frozen=True)
class Contender:
    """A runtime that may be able to run the bundle's graphs.

    `runners`: makes prefill, decode and, with an item table, decode_items; `profiles`: of each of
    them the sizes it takes, any of several; empty for any size.
    """

    name: str
    runners: Callable[[], list[Runner]]
    profiles: tuple[tuple[Profile, ...], ...] = ()

    def takes(self, spec: ModelSpec, case: ExpectedCase) -> bool:
        """Whether all requests of a case lie within a profile of the graph that answers them."""
        users, candidates = case.outputs["score"].shape
        events = case.case.cached
        decode = {"B": users, "C": candidates, "S": events, "T": case.case.appended}
        decode["K"] = spec.cached_events(events)
        prefill = [
            {"B": users, "S": part.stop - part.start, "K": part.start}
            for part in prefilled(spec, case)
        ]
        return all(
            any(_within(profile, sizes) for profile in graph)
            for number, graph in enumerate(self.profiles)
            for sizes in ([decode] if number else prefill)
        )


def _within(profile: Profile, sizes: Mapping[str, int]) -> bool:
    ranges = profile.axes.items()
    return all(r.min <= sizes[axis] <= r.max for axis, r in ranges if axis in sizes)


@dataclass(frozen=True)
class Lineup:
    """Who runs, and a sentence for each that doesn't."""

    contenders: tuple[Contender, ...]
    not_run: Mapping[str, str]


def line_up(folder: Path, manifest: Manifest, pytorch: Contender | None = None) -> Lineup:
    """Everything that can run the bundle's files on this machine, as far as can be told before."""
    contenders: list[Contender] = [] if pytorch is None else [pytorch]
    not_run = {PYTORCH: "no checkpoint was given: give --checkpoint MODEL"} if not pytorch else {}
    for name, provider in PROVIDERS.items():
        problem = _provider_problem(provider)
        if problem is None:
            contenders.append(_on_onnxruntime(name, provider, folder, manifest))
        else:
            not_run[name] = problem
    for backend in ENGINES:
        sets = _engines(manifest, backend)
        problem = _engine_problem(backend, folder, bool(sets))
        if problem is not None:
            not_run[backend] = problem
            continue
        others = _of_other_gpus(sets)
        not_run |= others
        found = [_on_engine(entries, folder, manifest) for entries in sets]
        contenders += [contender for contender in found if contender.name not in others]
    return Lineup(tuple(contenders), not_run)


def restricted(lineup: Lineup, names: Iterable[str]) -> Lineup:
    """Only the runtimes of these names; raises `InputError` for one that can't run here."""
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name in lineup.not_run:
            raise InputError(f"{name} can't run here: {lineup.not_run[name]}")
        if name not in NAMES:
            raise InputError(
                f"a runtime is one of {', '.join(NAMES)}, got {name!r}{nearest(name, NAMES)}"
            )
    kept = [c for c in lineup.contenders if c.name.partition(" ")[0] in wanted]
    others = {n: why for n, why in lineup.not_run.items() if n.partition(" ")[0] in wanted}
    return Lineup(tuple(kept), others)


def _provider_problem(provider: str) -> str | None:
    try:
        offered = ort.load_module().get_available_providers()
    except CkvError as error:
        return str(error)
    if provider in offered:
        return None
    return f"the onnxruntime installed here has no {provider}: run pip install 'ckv-export[gpu]'"


def _on_onnxruntime(name: str, provider: str, folder: Path, manifest: Manifest) -> Contender:
    return Contender(name, lambda: onnxruntime_runners(folder, manifest, provider))


def onnxruntime_runners(folder: Path, manifest: Manifest, provider: str = ort.CPU) -> list[Runner]:
    """All ONNX files of `folder` on a provider, their pools bound.

    The CPU provider has no bf16 products: there each is computed in fp32 and rounded.
    """
    rounded = manifest.precision == "bf16" and provider == ort.CPU
    kind = RoundedBf16Runner if rounded else ort.OnnxRuntimeRunner
    pools = load_pools(folder, manifest)
    return [
        BoundRunner(kind(folder / f"{graph}.onnx", manifest.graph(graph), provider), pools)
        for graph in manifest.graph_names
    ]


def _engines(manifest: Manifest, backend: str) -> list[Sequence[EngineEntry]]:
    """The complete sets of engines of a backend: one per graph, of the same name."""
    groups: dict[str, dict[str, EngineEntry]] = {}
    for entry in manifest.engines:
        if entry.backend == backend:
            groups.setdefault(_name(entry), {})[entry.graph] = entry
    names = manifest.graph_names
    return [[g[n] for n in names] for g in groups.values() if set(names) <= set(g)]


def _of_other_gpus(sets: Sequence[Sequence[EngineEntry]]) -> dict[str, str]:
    """Why sets of engines are left out: another one was built for the GPU that is present.

    Where none was, all stay, and each says more when it is loaded.
    """
    gpu = present_gpu()
    if gpu is None:
        return {}
    others = {
        _name(entries[0]): f"built for {', '.join(entries[0].targets)}, the GPU here is {gpu}"
        for entries in sets
        if not all(built_for(entry, gpu) for entry in entries)
    }
    return others if len(others) < len(sets) else {}


def _name(entry: EngineEntry) -> str:
    """Library, GPUs and kind of plugin, which tell the sets of a bundle's engines apart."""
    plugin = f", {entry.plugin['kind']} plugin" if entry.plugin else ""
    return f"{entry.backend} {'-'.join(entry.targets)}{plugin}"


def _engine_problem(backend: str, folder: Path, found: bool) -> str | None:
    if not found:
        command = f"ckv-export build {folder} --backend {backend}"
        return f"the bundle holds no {backend} engine of every graph: run {command}"
    try:
        load(backend)
    except CkvError as error:
        return str(error)
    return _gpu_problem()


def _gpu_problem() -> str | None:
    import torch

    if torch.cuda.is_available():
        return None
    return f"running an engine needs an NVIDIA GPU that torch {torch.__version__} can use"


def _on_engine(entries: Sequence[EngineEntry], folder: Path, manifest: Manifest) -> Contender:
    def runners() -> list[Runner]:
        pools = load_pools(folder, manifest)
        plain = [TensorRtRunner.of_bundle(folder, manifest, entry) for entry in entries]
        return [BoundRunner(runner, pools) for runner in plain]

    profiles = tuple(tuple(map(Profile.from_dict, e.profiles or (e.profile,))) for e in entries)
    return Contender(_name(entries[0]), runners, profiles)

"""Options that several verbs take."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator

from ckv_export import engine
from ckv_export.cache.rows import USER_DTYPES as RECORD_DTYPES
from ckv_export.cli.show import ShownStages, SteadyConsole
from ckv_export.contract import ModelSpec, Profile, Range
from ckv_export.deploy.engines import Display, EngineOptions
from ckv_export.engine import ProgressListener
from ckv_export.errors import InputError

_AXIS_FLAGS = {
    "batch": ("B", "users in one call"),
    "history": ("S", "events of a history"),
    "appended": ("T", "events appended in one call"),
    "candidates": ("C", "candidates of each user"),
}
_ENGINE_FLAGS = ("target", "backend", "workspace", "optimization_level")


def count(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint, and what of a run folder."""
    parser.add_argument(
        "--weights", metavar="FILE", help="which .model file of a FuxiCTR run folder"
    )
    parser.add_argument(
        "--params",
        metavar="ID|FILE",
        help="which experiment of its model_config.yaml, or another YAML file",
    )


def add_shapes(parser: argparse.ArgumentParser) -> None:
    """Ranges of the dynamic axes."""
    for flag, (axis, what) in _AXIS_FLAGS.items():
        parser.add_argument(
            f"--{flag}",
            metavar="MIN:OPT:MAX",
            help=f"engine profile: {what} (axis {axis}); N, MIN:MAX or MIN:OPT:MAX",
        )


def axes(args: argparse.Namespace) -> tuple[tuple[str, Range], ...]:
    """The ranges given; raises `SpecError` for one that is none."""
    given = {axis: getattr(args, flag) for flag, (axis, _) in _AXIS_FLAGS.items()}
    return tuple((axis, Range.parse(text)) for axis, text in given.items() if text is not None)


def shape_arguments(ranges: Iterable[tuple[str, Range]]) -> list[str]:
    """The options that give these ranges."""
    flags = {axis: flag for flag, (axis, _) in _AXIS_FLAGS.items()}
    return [f"--{flags[axis]}={size}" for axis, size in ranges]


def engine_arguments(chosen: EngineOptions) -> list[str]:
    """The options that give these engines, shapes left out."""
    numbers = {"workspace": chosen.workspace_mib, "optimization-level": chosen.optimization_level}
    return [
        f"--backend={chosen.backend.name}",
        *(f"--target={target}" for target in chosen.targets),
        *(f"--{flag}={number}" for flag, number in numbers.items() if number is not None),
    ]


def add_engines(parser: argparse.ArgumentParser) -> None:
    """How engines are built."""
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="GPU",
        help="GPU generation, such as sm86, ada or portable; repeat for several",
    )
    parser.add_argument("--backend", choices=("tensorrt", "tensorrt_rtx"), help="which TensorRT")
    parser.add_argument(
        "--workspace", type=positive, metavar="MIB", help="scratch memory limit in MiB"
    )
    parser.add_argument(
        "--optimization-level",
        type=count,
        choices=range(6),
        metavar="0..5",
        help="0 builds fastest, 5 runs fastest",
    )


def add_records(parser: argparse.ArgumentParser) -> None:
    """How users' records are kept."""
    parser.add_argument(
        "--user-dtype",
        choices=tuple(RECORD_DTYPES),
        default="fp16",
        help="of the user parts in records; prefill and server must agree",
    )
    parser.add_argument(
        "--max-events", type=positive, metavar="N", help="kept of a user; default: the model's"
    )


def refuse_engine_options(args: argparse.Namespace) -> None:
    """Raise `InputError` where an option of engines was given and none are to be built."""
    for name in _ENGINE_FLAGS:
        if getattr(args, name) not in (None, []):
            raise InputError(f"--{name.replace('_', '-')} is for engines only: give --build too")


def engine_options(args: argparse.Namespace, profile: Profile | None = None) -> EngineOptions:
    """The engine options given; raises `MissingDependency` where no TensorRT is installed."""
    backend = engine.load(args.backend)
    engine.parse_targets(args.target or engine.default_targets(backend), backend)
    return EngineOptions(
        backend, tuple(args.target), profile, args.workspace, args.optimization_level
    )


def replaced_profile(profile: Profile, spec: ModelSpec, args: argparse.Namespace) -> Profile:
    """`profile` with the ranges given."""
    return profile.replaced(spec, dict(axes(args)))


def build_display(stages: ShownStages) -> Display:
    """A build's progress bar, drawn in place of the stage's spinner."""

    @contextlib.contextmanager
    def display() -> Iterator[ProgressListener]:
        stages.pause()
        with engine.progress_display(SteadyConsole(stderr=True)) as listener:
            yield listener

    return display

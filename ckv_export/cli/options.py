"""Options that several verbs take."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ckv_export import engine
from ckv_export.cache.rows import USER_DTYPES as RECORD_DTYPES
from ckv_export.cli.show import ShownStages, SteadyConsole
from ckv_export.contract import ModelSpec, Profile, Range
from ckv_export.deploy.engines import Display
from ckv_export.engine import ProgressListener
from ckv_export.errors import InputError

_AXIS_FLAGS = {
    "batch": ("B", "users in one call"),
    "history": ("S", "events of a history"),
    "appended": ("T", "events appended in one call"),
    "candidates": ("C", "candidates of each user"),
}


def given(args: argparse.Namespace, name: str) -> bool:
    """Whether an option that has no default was given."""
    value = getattr(args, name)
    # 0 is given, though it equals False.
    return not (value is None or value is False or value == [])


def refuse_without(args: argparse.Namespace, needed: str, *names: str) -> None:
    """Raise `InputError` for an option of `names` that says nothing without the option `needed`."""
    for name in names:
        if given(args, name) and not given(args, needed):
            option, other = (f"--{n.replace('_', '-')}" for n in (name, needed))
            raise InputError(f"{option} is for {other} only: give {other} too, or leave it out")


def refuse_with(args: argparse.Namespace, other: str, name: str, why: str) -> None:
    """Raise `InputError` for the option `name` beside `other`, which leaves it nothing to say."""
    if given(args, name) and given(args, other):
        raise InputError(f"--{name} says nothing beside --{other.replace('_', '-')}: {why}")


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


def threads(text: str) -> int:
    """A number of threads that run at the same time on this machine."""
    number, most = positive(text), os.cpu_count() or 1
    if number > most:
        raise argparse.ArgumentTypeError(
            f"must be at most {most}, the processors of this machine, got {number}"
        )
    return number


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Which bundle."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the folder that export wrote")


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


def add_user_dtype(parser: argparse.ArgumentParser, condition: str = "") -> None:
    """What user parts are in a record."""
    parser.add_argument(
        "--user-dtype",
        choices=tuple(RECORD_DTYPES),
        default="fp16",
        help=f"of the user parts in records{condition}",
    )


def add_records(parser: argparse.ArgumentParser) -> None:
    """How users' records are kept."""
    add_user_dtype(parser, "; prefill and server must agree")
    parser.add_argument(
        "--max-events", type=positive, metavar="N", help="kept of a user; default: the model's"
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

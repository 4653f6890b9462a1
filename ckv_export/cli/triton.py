"""``ckv-export triton BUNDLE``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ckv_export.cli import options
from ckv_export.cli.show import ShownStages, console, done, print_lines
from ckv_export.deploy.triton import check_place, publish_repository
from ckv_export.errors import InputError
from ckv_export.manifest import open_bundle
from ckv_export.triton.repository import LAUNCHER, PLATFORMS, RepositoryOptions

HELP = "write a model repository of Triton Inference Server from a bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    options.add_bundle(parser)
    parser.add_argument(
        "--out", required=True, metavar="DIR", type=Path, help="the model repository"
    )
    parser.add_argument(
        "--store",
        required=True,
        metavar="URL",
        help="of the users' records: sqlite:///FILE or redis://HOST:PORT/DB",
    )
    parser.add_argument(
        "--platform",
        choices=PLATFORMS,
        default="onnx",
        help="what runs the graphs: Triton's ONNX Runtime or TensorRT backend, or ONNX Runtime "
        "within the Python backend (in-process)",
    )
    options.add_records(parser)
    parser.add_argument(
        "--instances", type=options.positive, default=1, metavar="N", help="of the scoring model"
    )
    parser.add_argument(
        "--queue-delay",
        type=options.count,
        default=1000,
        metavar="MICROSECONDS",
        help="that a request waits for others to share its call",
    )
    parser.add_argument(
        "--threads",
        type=options.positive,
        metavar="N",
        help="of ONNX Runtime in-process (1)",
    )
    parser.add_argument(
        "--plugin",
        type=Path,
        metavar="FILE",
        help="self-registering plugin library that TensorRT plans were built with",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier repository")


def run(args: argparse.Namespace) -> int:
    """Write the repository."""
    if args.threads is not None and args.platform != "in-process":
        raise InputError(
            "--threads is for --platform in-process only: Triton's own backends choose theirs"
        )
    stages = ShownStages()
    check_place(args.out, args.force)
    with stages.stage("verify hashes"):
        manifest = open_bundle(args.bundle)
    chosen = RepositoryOptions(
        args.store,
        args.platform,
        args.user_dtype,
        args.max_events,
        args.instances,
        args.queue_delay,
        args.threads or 1,
        args.plugin,
    )
    with stages.stage("write repository") as stage:
        names = publish_repository(args.bundle, manifest, chosen, args.out, args.force)
        stage.remark = ", ".join(names)
    with done(f"the repository {args.out} is written"):
        console.print(f"Start the server {_where(args.store)}with")
        # Not joined as a path: a shell takes "launch.sh" for a program on its PATH.
        print_lines(["  " + shlex.quote(f"{args.out}/{LAUNCHER}")])
    return 0


def _where(store: str) -> str:
    """From elsewhere the server would make itself another file, and know no user."""
    relative = store.startswith("sqlite:///") and not store.startswith("sqlite:////")
    return "from this folder, where the store's file is looked for, " if relative else ""

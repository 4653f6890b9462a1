"""``ckv-export plugin build``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ckv_export.cli.show import ShownStages, command, console, print_lines, table
from ckv_export.engine.plugin_build import PluginBuild, build_plugins, default_source

HELP = "build the TensorRT plugin libraries from their CUDA sources"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    parser.add_argument(
        "action", choices=("build",), help="with CMake, nvcc and TensorRT's headers"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", type=Path, help="where the libraries go"
    )
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="GPU",
        help="GPU generation, such as sm86; repeat for several; default: sm75 to sm120",
    )
    parser.add_argument("--tensorrt-root", metavar="DIR", type=Path, help="where TensorRT lies")
    parser.add_argument(
        "--source",
        metavar="DIR",
        type=Path,
        default=default_source(),
        help="the folder plugins of a clone",
    )


def run(args: argparse.Namespace) -> int:
    """Build and list the libraries."""
    build = PluginBuild(args.source, tuple(args.target), args.tensorrt_root)
    stages = ShownStages()
    with stages.stage("build plugins") as stage:
        stages.pause()
        built = build_plugins(build, args.out, _show)
        stage.remark = f"TensorRT {built.tensorrt}, {', '.join(built.targets)}"
    rows = [(name, digest[:16]) for name, digest in built.files.items()]
    console.print(table(f"Plugins in {args.out}", ("library", "SHA-256"), rows))
    print_lines(["  " + command("build", "BUNDLE", f"--plugin-library={args.out}")])
    return 0


def _show(line: str) -> None:
    if line.startswith("[") and "%]" in line:
        console.print(f"  {line}")

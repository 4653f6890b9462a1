"""``ckv-export build BUNDLE``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ckv_export.cli import options
from ckv_export.cli.show import ShownStages, console, print_lines, table
from ckv_export.deploy.engines import build_engines, equivalent_commands
from ckv_export.manifest import open_bundle

HELP = "build TensorRT engines from a bundle's ONNX graphs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    options.add_shapes(parser)
    options.add_engines(parser)


def run(args: argparse.Namespace) -> int:
    """Build an engine of each graph and list them in the manifest."""
    stages = ShownStages()
    with stages.stage("verify hashes"):
        manifest = open_bundle(args.bundle)
    profile = options.replaced_profile(manifest.profile, manifest.model, args)
    chosen = options.engine_options(args, profile)
    built = build_engines(args.bundle, manifest, chosen, stages, options.build_display(stages))
    built = built.with_files(args.bundle)
    built.write(args.bundle)
    rows = [
        (e.file, f"{built.files[e.file].bytes / 1e6:.2f} MB", e.backend_version, e.layers)
        for e in built.engines
    ]
    console.print(table(f"Engines of {args.bundle}", ("file", "size", "version", "layers"), rows))
    console.print("The same with the library's own tool:")
    print_lines(["  " + line for line in equivalent_commands(args.bundle, manifest, chosen)])
    return 0

"""``ckv-export build BUNDLE``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ckv_export.cli import engine_options, options
from ckv_export.cli.show import ShownStages, console, done, print_lines, table
from ckv_export.deploy import built as what
from ckv_export.deploy.engines import EngineOptions, build_engines, equivalent_commands
from ckv_export.deploy.publish import amended, require_outside
from ckv_export.manifest import Manifest, open_bundle

HELP = "build TensorRT engines from a bundle's ONNX graphs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    options.add_bundle(parser)
    options.add_shapes(parser)
    engine_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Build an engine of each graph and list them in the manifest."""
    stages = ShownStages()
    with stages.stage("verify hashes"):
        manifest = open_bundle(args.bundle)
    profile = options.replaced_profile(manifest.profile, manifest.model, args)
    chosen = engine_options.chosen(args, profile)
    require_outside(args.bundle, *chosen.caches)
    with amended(args.bundle) as folder:
        built = build_engines(folder, manifest, chosen, stages, options.build_display(stages))
        built = built.with_files(folder)
        built.write(folder)
    with done(f"the engines of {args.bundle} are built"):
        _print_summary(args.bundle, built, chosen)
    return 0


def _print_summary(bundle: Path, built: Manifest, chosen: EngineOptions) -> None:
    rows = [
        (e.file, f"{built.files[e.file].bytes / 1e6:.2f} MB", e.backend_version, e.layers)
        for e in built.engines
    ]
    console.print(table(f"Engines of {bundle}", ("file", "size", "version", "layers"), rows))
    console.print(table("What was built", what.HEADS, what.rows(bundle, built.engines)))
    console.print("The same with the library's own tool:")
    print_lines(["  " + line for line in equivalent_commands(bundle, built, chosen)])

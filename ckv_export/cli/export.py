"""``ckv-export [export] MODEL --out DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.text import Text

from ckv_export.cache import cache_sizes
from ckv_export.cli import engine_options, options
from ckv_export.cli.show import (
    ShownStages,
    command,
    console,
    done,
    parity_tables,
    print_lines,
    table,
)
from ckv_export.contract import PRECISIONS
from ckv_export.deploy import built
from ckv_export.deploy.bundle import Exported, ExportRequest, export_bundle
from ckv_export.deploy.prepare import FormRequest
from ckv_export.manifest import POOLS, Manifest

HELP = "split a trained model into prefill and decode ONNX graphs, prove parity, build engines"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the verb's options."""
    parser.add_argument(
        "model", metavar="MODEL", type=Path, help="model.pt, a safetensors or FuxiCTR run folder"
    )
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="where bundles go")
    parser.add_argument("--name", help="the bundle's name; default: the checkpoint's")
    parser.add_argument("--force", action="store_true", help="replace a bundle of that name")
    parser.add_argument("--no-parity", action="store_true", help="skip the parity gate")
    parser.add_argument("--seed", type=options.count, help="of the parity cases (0)")
    parser.add_argument("--build", action="store_true", help="build TensorRT engines too")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of attention and scoring network; what routes, selects or is cached stays fp32",
    )
    parser.add_argument(
        "--pool",
        choices=POOLS,
        default="constant",
        help="input: the graphs take the pools, so that a retrained one goes live by binding it; "
        "refit: engines can exchange them; default: constants",
    )
    _add_form(parser)
    options.add_model(parser)
    options.add_shapes(parser)
    engine_options.add_arguments(parser)


def _add_form(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--embeddings",
        choices=("inline", "external"),
        default="inline",
        help="external: the graphs take embeddings, from a parameter server, instead of ids",
    )
    parser.add_argument(
        "--item-features",
        metavar="FILE",
        type=Path,
        help=".npz or .parquet of every item's features: the graphs then take item ids alone",
    )
    parser.add_argument(
        "--item-key", metavar="FEATURE", help="which item feature is the id; default: the first"
    )
    parser.add_argument(
        "--item-table",
        action="store_true",
        help="write what is cached of each item, and a decode graph that needs only ids and it",
    )
    parser.add_argument(
        "--item-rows",
        action="store_true",
        help="hstu: look up the first layer's pool rows of each item instead of routing it",
    )
    parser.add_argument(
        "--item-ids",
        metavar="NAME",
        help="with --item-table: what item ids mean, in a name of yours; bundles of one name read "
        "each other's users, whatever else was retrained; default: a bundle reads its own",
    )


def run(args: argparse.Namespace) -> int:
    """Export and print the summary."""
    run_request(request_of(args))
    return 0


def request_of(args: argparse.Namespace) -> ExportRequest:
    """The request that the options describe; raises `InputError` for options that don't fit."""
    if not args.build:
        engine_options.refuse(args)
    options.refuse_with(args, "no_parity", "seed", why="it is of the parity cases")
    return ExportRequest(
        model=args.model,
        out=args.out,
        name=args.name,
        weights=args.weights,
        params=args.params,
        force=args.force,
        parity=not args.no_parity,
        seed=args.seed or 0,
        axes=options.axes(args),
        form=FormRequest(
            args.embeddings,
            args.item_features,
            args.item_key,
            args.item_table,
            args.precision,
            args.pool,
            args.item_rows,
            args.item_ids,
        ),
        engines=engine_options.chosen(args) if args.build else None,
        files=(args.profiles,) if args.profiles is not None else (),
    )


def run_request(request: ExportRequest) -> Exported:
    """Export with progress on the console, and print the summary."""
    stages = ShownStages()
    exported = export_bundle(request, stages, options.build_display(stages))
    with done(f"the bundle {exported.folder} is complete"):
        _print_summary(exported, request)
    return exported


def _print_summary(exported: Exported, request: ExportRequest) -> None:
    manifest = exported.manifest
    for note in manifest.notes:
        console.print(Text.assemble("\n", ("note", "bold yellow"), f": {note}"))
    if exported.parity is not None:
        console.print()
        for each in parity_tables(exported.parity, brief=True):
            console.print(each)
    console.print(table(f"Bundle {exported.folder}", ("what", "value"), _summary(exported)))
    if manifest.engines:
        rows = built.rows(exported.folder, manifest.engines)
        console.print(table("What was built", built.HEADS, rows))
    if request.engines is None:
        console.print("No engines were built: give --build, or build them from the bundle.")
    if exported.parity is None:
        console.print("Parity was not checked.", style="bold red")
    console.print("Each stage again:")
    print_lines(["  " + line for line in _again(exported, request)])


def _form_arguments(form: FormRequest) -> list[str]:
    """The options that describe `form`."""
    given = {
        "item-features": form.item_features,
        "item-key": form.item_key,
        "item-ids": form.item_ids,
    }
    arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
    plain = FormRequest()
    for name in ("embeddings", "precision", "pool"):
        if getattr(form, name) != getattr(plain, name):
            arguments.append(f"--{name}={getattr(form, name)}")
    tables = {"--item-table": form.item_table, "--item-rows": form.item_rows}
    return arguments + [flag for flag, wanted in tables.items() if wanted]


def _summary(exported: Exported) -> list[tuple[str, str]]:
    """The bundle in a few lines."""
    manifest, spec = exported.manifest, exported.manifest.model
    sizes = cache_sizes(spec, form=manifest.form)
    cached = sum(row.bytes_per_event * row.layers for row in sizes.compact)
    full = sum(row.bytes_per_event * row.layers for row in sizes.full if row.dtype == "fp32")
    rows = [
        ("model", f"{spec.kind}, d {spec.attention.d}, fingerprint {manifest.fingerprint[:16]}"),
        ("precision", manifest.precision),
        ("pools", manifest.pool),
        *([("item rows", "looked up in the first layer")] if manifest.item_rows else []),
        ("graphs", _sizes(manifest, ".onnx", ".bin", ".safetensors")),
        ("engines", _sizes(manifest, ".engine") or "none"),
        ("cache per event", f"{cached:g} B, {cached / full:.2%} of {full:g} B of fp32 K and V"),
        ("cache per user", f"{sizes.compact_bytes:,} B, {sizes.record_bytes:,} B with the history"),
        ("seconds", f"{sum(manifest.timings.values()):.1f}"),
    ]
    return [rows[0], ("parity", _verdict(exported)), *rows[1:]]


def _sizes(manifest: Manifest, *endings: str) -> str:
    return ", ".join(
        f"{name} {entry.bytes / 1e6:.1f} MB"
        for name, entry in manifest.files.items()
        if name.endswith(endings)
    )


def _verdict(exported: Exported) -> str:
    report = exported.parity
    if report is None:
        return "not checked"
    worst = ", ".join(f"{o.runtime.runtime} {o.worst('score'):.1e}" for o in report.outcomes)
    return f"passed in {report.cases} cases; worst score error {worst}"


def _again(exported: Exported, request: ExportRequest) -> list[str]:
    export = ["export", str(request.model), f"--out={request.out}", "--force"]
    export += [f"--{n}={v}" for n in ("name", "weights", "params") if (v := getattr(request, n))]
    export += _form_arguments(request.form) + options.shape_arguments(request.axes)
    export += [f"--seed={request.seed}"] if request.parity else ["--no-parity"]
    engines = engine_options.arguments(request.engines) if request.engines else []
    lines = [
        command(*export),
        command("build", exported.folder, *engines),
        command("inspect", exported.folder),
    ]
    return lines if exported.parity is None else [*lines, command("parity", exported.folder)]

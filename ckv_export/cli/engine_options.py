"""Options of verbs that build engines."""

from __future__ import annotations

import argparse
from pathlib import Path

from ckv_export import engine
from ckv_export.cli.options import count, given, positive
from ckv_export.contract import Profile
from ckv_export.deploy.engines import EngineOptions
from ckv_export.deploy.profiles import NamedRanges, read_profiles
from ckv_export.engine import PluginChoice, Settings
from ckv_export.engine.cache import require_place
from ckv_export.engine.plugins import KINDS, NONE, identity
from ckv_export.errors import InputError

_FLAGS = (
    *("target", "backend", "workspace", "optimization_level"),
    *("plugin", "plugin_library", "profile", "profiles", "timing_cache", "engine_cache"),
    *("hardware_compatible", "version_compatible"),
)


def arguments(options: EngineOptions) -> list[str]:
    """The options that give these engines, shapes left out."""
    numbers = {"workspace": options.workspace_mib, "optimization-level": options.optimization_level}
    return [
        f"--backend={options.backend.name}",
        *(f"--target={target}" for target in options.targets),
        *(f"--{flag}={number}" for flag, number in numbers.items() if number is not None),
        *_settings_arguments(options.settings),
        *(f"--profile={each}" for each in options.profiles),
        *([f"--engine-cache={options.cache}"] if options.cache else []),
    ]


def _settings_arguments(settings: Settings) -> list[str]:
    plugin = settings.plugin
    words = [] if plugin.kind == NONE else [f"--plugin={plugin.kind}"]
    words += [f"--plugin-library={plugin.library}"] if plugin.library else []
    words += ["--version-compatible"] if settings.version_compatible else []
    words += ["--hardware-compatible"] if settings.hardware_compatible else []
    return words + ([f"--timing-cache={settings.timing_cache}"] if settings.timing_cache else [])


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    _add_plugin(parser)
    _add_profiles(parser)
    _add_caches(parser)
    parser.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="an engine for every GPU from Ampere on (TensorRT)",
    )
    parser.add_argument(
        "--version-compatible",
        action="store_true",
        help="an engine for later versions too; a plugin library goes inside (TensorRT)",
    )


def _add_profiles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        action="append",
        type=NamedRanges.parse,
        default=[],
        metavar="AXIS=RANGE,...",
        help="an optimization profile, such as history=0:50:100,batch=1:8:64; repeat for several",
    )
    parser.add_argument(
        "--profiles",
        type=Path,
        metavar="FILE",
        help="optimization profiles from a YAML file: NAME: {history: 0:50:100, ...}",
    )


def _add_caches(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="kernel timings to read and add to, so that a later build is faster (TensorRT)",
    )
    parser.add_argument(
        "--engine-cache",
        type=Path,
        metavar="DIR",
        help="engines by what they were built from: the same build is copied from there",
    )


def _add_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin",
        choices=KINDS,
        help="who computes the pool step: a plugin library, kernels embedded in the engine, or "
        "native layers; default: library if one is given, else none",
    )
    parser.add_argument(
        "--plugin-library",
        metavar="PATH",
        type=Path,
        help="what `ckv-export plugin build` wrote: the library or its folder",
    )


def refuse(args: argparse.Namespace) -> None:
    """Raise `InputError` where an option of engines was given and none are to be built."""
    for name in _FLAGS:
        if given(args, name):
            raise InputError(f"--{name.replace('_', '-')} is for engines only: give --build too")


def chosen(args: argparse.Namespace, profile: Profile | None = None) -> EngineOptions:
    """The engine options given; raises `MissingDependency` where no TensorRT is installed."""
    backend = engine.load(args.backend)
    targets = engine.parse_targets(args.target or engine.default_targets(backend), backend)
    settings = _settings(args)
    settings.require_supported(backend)
    if args.engine_cache is not None:
        require_place(args.engine_cache)
    # The library, or what embedding needs, is looked for before anything else is done.
    identity(settings.plugin, backend, settings.code_targets(targets))
    return EngineOptions(
        backend,
        tuple(args.target),
        profile,
        args.workspace,
        args.optimization_level,
        settings,
        _profiles(args),
        args.engine_cache,
    )


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        PluginChoice.of(args.plugin, args.plugin_library),
        args.version_compatible,
        args.hardware_compatible,
        args.timing_cache,
    )


def _profiles(args: argparse.Namespace) -> tuple[NamedRanges, ...]:
    if args.profiles is None:
        return tuple(args.profile)
    if args.profile:
        raise InputError("give profiles by --profile or by --profiles, not by both")
    return read_profiles(args.profiles)

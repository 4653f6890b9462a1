"""The command line of the vendor's own tool that builds the same engine."""

from __future__ import annotations

import shlex
from pathlib import Path

from ckv_export.contract import Profile
from ckv_export.engine.backends import Backend
from ckv_export.engine.build import BuildRequest
from ckv_export.engine.plugin_library import library_file
from ckv_export.engine.plugins import EMBEDDED
from ckv_export.engine.profiles import input_shapes
from ckv_export.engine.settings import Settings
from ckv_export.engine.targets import parse_targets

SHAPE_OPTIONS = ("--minShapes", "--optShapes", "--maxShapes")


def trtexec_command(request: BuildRequest, backend: Backend, out: Path | None = None) -> str:
    """Return a shell command: ``trtexec`` for TensorRT, ``tensorrt_rtx`` for TensorRT for RTX.

    `out` defaults to the ONNX file's name with ``.engine``. Embedded kernels are beyond these
    tools: a comment says so in the place of a command. Raises `EngineError` for a
    profile, or a target of TensorRT for RTX, that `build_engine` would refuse.

    Example, shortened::

        trtexec --onnx=decode.onnx --saveEngine=decode.engine --skipInference --noTF32
        --minShapes=cache_k_index:1x1x0,... --optShapes=... --maxShapes=...
    """
    if request.settings.plugin.kind == EMBEDDED:
        return f"# {backend.label}'s own tool takes no Python plugins, so it embeds no kernels"
    out = out or request.onnx.with_suffix(".engine")
    arguments = [f"--onnx={request.onnx}", f"--saveEngine={out}", "--skipInference"]
    arguments += _shape_arguments(request)
    if request.workspace_mib is not None:
        arguments.append(f"--memPoolSize=workspace:{request.workspace_mib}M")
    if request.optimization_level is not None:
        arguments.append(f"--builderOptimizationLevel={request.optimization_level}")
    arguments += _settings_arguments(request.settings, backend)
    tool = _rtx(request, backend) if backend.is_rtx else _trtexec(backend)
    return shlex.join([*tool, *arguments])


def _settings_arguments(settings: Settings, backend: Backend) -> list[str]:
    arguments = ["--profilingVerbosity=detailed"]
    if settings.version_compatible:
        arguments.append("--versionCompatible")
    if settings.hardware_compatible:
        arguments.append("--hardwareCompatibilityLevel=ampere+")
    if settings.refit:
        # The tool chooses no single weights: all that can be refitted are.
        arguments.append("--refit")
    if settings.timing_cache is not None:
        arguments.append(f"--timingCacheFile={settings.timing_cache}")
    if settings.plugin.library is not None:
        library = library_file(settings.plugin.library, backend)
        arguments.append(f"--dynamicPlugins={library}")
        if settings.version_compatible:
            arguments.append(f"--setPluginsToSerialize={library}")
    return arguments


def _trtexec(backend: Backend) -> list[str]:
    # TensorRT 11 is strongly typed and ignores the flag with a warning.
    typed = ["--stronglyTyped"] if backend.version.startswith("10.") else []
    return ["trtexec", "--noTF32", *typed]


def _rtx(request: BuildRequest, backend: Backend) -> list[str]:
    targets = parse_targets(request.targets, backend)
    capabilities = ",".join(target.removeprefix("sm") for target in targets)
    # No TF32 switch of this tool is documented; the library itself obeys the variable.
    without_tf32 = ["env", "NVIDIA_TF32_OVERRIDE=0"]
    return [*without_tf32, "tensorrt_rtx", f"--computeCapabilities={capabilities}"]


def _shape_arguments(request: BuildRequest) -> list[str]:
    arguments: list[str] = []
    for number, profile in enumerate(request.profiles):
        several = [f"--profile={number}"] if request.more_profiles else []
        arguments += [*several, *_shapes_of(request, profile)]
    return arguments


def _shapes_of(request: BuildRequest, profile: Profile) -> list[str]:
    shapes = input_shapes(request.tensors, profile)
    return [
        f"{option}={','.join(_shape(name, ends[i]) for name, ends in shapes.items())}"
        for i, option in enumerate(SHAPE_OPTIONS)
    ]


def _shape(name: str, shape: tuple[int, ...]) -> str:
    # Both tools split at commas and at the last colon unless the name is in single quotes.
    quoted = f"'{name}'" if set(name) & set(",:") else name
    return f"{quoted}:{'x'.join(map(str, shape))}"

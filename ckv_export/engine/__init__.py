"""ONNX file -> serialized engine, one path for TensorRT 10, TensorRT 11 and TensorRT for RTX."""

from ckv_export.engine.backends import Backend, available, load
from ckv_export.engine.build import BuildRequest, BuiltEngine, build_engine
from ckv_export.engine.commands import trtexec_command
from ckv_export.engine.display import progress_display
from ckv_export.engine.network import EngineTensor
from ckv_export.engine.plugins import PluginChoice
from ckv_export.engine.progress import ProgressListener
from ckv_export.engine.settings import Settings
from ckv_export.engine.targets import CURRENT, default_targets, known_targets, parse_targets

__all__ = [
    "CURRENT",
    "Backend",
    "BuildRequest",
    "BuiltEngine",
    "EngineTensor",
    "PluginChoice",
    "ProgressListener",
    "Settings",
    "available",
    "build_engine",
    "default_targets",
    "known_targets",
    "load",
    "parse_targets",
    "progress_display",
    "trtexec_command",
]

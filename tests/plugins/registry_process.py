"""Run by test_registry.py in a process of its own: load a library into a real registry.

Prints one JSON object. No ONNX is parsed here: with a matching creator registered, the parser of
TensorRT for RTX ends the process.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import numpy as np
import tensorrt_rtx as trt

how, library = sys.argv[1:]
logger = trt.Logger(trt.Logger.ERROR)
registry = trt.get_plugin_registry()


def field(name: str, value: Any, kind: Any) -> Any:
    return trt.PluginField(name, value, kind)


def attributes() -> Any:
    heads = field("num_heads", np.array([8], np.int32), trt.PluginFieldType.INT32)
    scale = field("scale", np.array([0.5], np.float32), trt.PluginFieldType.FLOAT32)
    return trt.PluginFieldCollection([heads, scale])


def described(creator: Any) -> dict[str, Any]:
    plugin = creator.create_plugin("node", attributes(), trt.TensorRTPhase.BUILD)
    core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    return {
        "key": [creator.name, creator.plugin_version, creator.plugin_namespace],
        "fields": [f.name for f in creator.field_names],
        "plugin": [core.plugin_name, core.plugin_version, core.plugin_namespace],
    }


def load() -> bool:
    if how == "loadLibrary":
        return registry.load_library(library) is not None
    ctypes.CDLL(library)
    return True


loaded = [load(), load()]
ours = [c for c in registry.all_creators if c.plugin_namespace == "ckv"]
found = registry.get_creator("PooledAttention", "1", "ckv")
refused = found.create_plugin("n", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)
print(
    json.dumps(
        {
            "loaded": loaded,
            "creators": [described(c) for c in ours],
            "without fields": None if refused is None else "made",
            "elsewhere": registry.get_creator("PooledAttention", "1", "") is None,
        }
    )
)

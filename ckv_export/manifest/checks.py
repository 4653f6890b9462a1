"""Whether JSON data is of the kinds that later rooms rely on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ckv_export.contract import Profile

_KINDS = {
    **dict.fromkeys(("name", "fingerprint", "precision", "pool"), str),
    **dict.fromkeys(("model", "profile", "source", "versions", "operators", "timings"), dict),
    **dict.fromkeys(("parity", "files", "fingerprints", "padding"), dict),
    **dict.fromkeys(("notes", "engines"), list),
}
_AXES = ("B", "S", "K", "T", "C")
_ENGINE_KINDS: dict[str, type] = {
    **dict.fromkeys(("graph", "file", "backend", "backend_version"), str),
    "targets": list,
    "profile": dict,
}
_LATER_ENGINE_KINDS: dict[str, type] = {
    "pool_step": str,
    "report": str,
    "onnx": str,
    "plugin": dict,
    "settings": dict,
    "profiles": list,
}
_PLUGIN_KINDS: dict[str, type] = {
    **dict.fromkeys(("kind", "sha256", "operator_version", "tensorrt"), str),
    "targets": list,
    "carried": bool,
}


def check_kinds(data: Mapping[str, Any]) -> None:
    """Raise KeyError or TypeError for what no later room would survive."""
    _check_each("", data, _KINDS | ({} if data["parity"] is not None else {"parity": type(None)}))
    if data["parity"] is not None:
        _check_each("parity: ", data["parity"], {"seed": int})
    _check_all("profile", data["profile"].values(), str)
    _check_each("profile: ", data["profile"], dict.fromkeys(_AXES, str))
    _check_all("fingerprints", data["fingerprints"].values(), str)
    if data["item_table"] is not None:
        _check_each("item table: ", data["item_table"], {"items": int})
    for engine in data["engines"]:
        given = {n: k for n, k in _LATER_ENGINE_KINDS.items() if engine.get(n) is not None}
        _check_each("engine: ", engine, {**_ENGINE_KINDS, **given})
        _check_all("engine: targets", engine["targets"], str)
        for profile in (engine["profile"], *(engine.get("profiles") or ())):
            _check_all("engine: profile", profile.values(), str)
            Profile.from_dict(profile)
        if engine.get("plugin") is not None:
            _check_each("plugin: ", engine["plugin"], _PLUGIN_KINDS)
    for name in _paths(data):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name!r} is no path in the bundle")
    _check_all("notes", data["notes"], str)


def _check_all(where: str, values: Iterable[Any], kind: type) -> None:
    for value in values:
        _check_each("", {where: value}, {where: kind})


def _paths(data: Mapping[str, Any]) -> Iterator[str]:
    """Everything that later rooms take for the path of a file in the bundle."""
    yield from data["files"]
    for engine in data["engines"]:
        plugin = engine.get("plugin") or {}
        yield from filter(None, (engine["file"], engine.get("report"), plugin.get("file")))


def _check_each(where: str, data: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        if not isinstance(data[name], kind):
            got = type(data[name]).__name__
            raise TypeError(f"{where}{name} must be a {kind.__name__}, got {got}")

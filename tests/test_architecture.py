"""Rooms import only from rooms below them, and every public name says what it is."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckv_export

ROOT = Path(ckv_export.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
LONGEST_MODULE = 350

# Lowest first. A room may import from any line below its own, never from its own line.
ROOMS = (
    ("errors",),
    ("contract",),
    ("stages", "manifest", "doctor", "store"),
    ("model",),
    ("checkpoint",),
    ("training", "graphs"),
    ("onnx_export",),
    ("engine",),
    ("runtimes",),
    ("arrays",),
    ("catalogue", "events", "cache"),
    ("serving",),
    ("triton", "bulk"),
    ("parity",),
    ("deploy",),
    ("bench",),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, line in enumerate(ROOMS) for room in line}

# From the files on, rooms meet through the bundle and its manifest: they know no model.
KNOW_NO_MODEL = {
    "manifest", "stages", "doctor", "engine", "runtimes", "arrays", "catalogue", "events", "cache",
    "store", "serving", "triton", "bulk",
}  # fmt: skip
MODEL_ROOMS = {"model", "checkpoint", "graphs", "training", "onnx_export"}

PUBLIC: list[str] = []
"""What ``from ckv_export import *`` gives, but for the version."""


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[str]:
    """Dotted names of the package's modules that `path` imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names = [node.module or ""]
            if node.module == "ckv_export":
                names = [f"ckv_export.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (n for n in names if n.startswith("ckv_export.") and "__version__" not in n)


def imported_rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported_modules(path)} - {room_of(path)}


def test_every_room_has_its_place():
    rooms = {room_of(path) for path in MODULES} - {"__init__"}
    assert rooms <= set(RANK), "a new room: give it a line in ROOMS"
    assert len(MODULES) > 60


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path: Path):
    if path == ROOT / "__init__.py":
        return
    upwards = {r for r in imported_rooms(path) if RANK[r] >= RANK[room_of(path)]}
    assert not upwards, f"{room_of(path)} must not import {sorted(upwards)}"


@pytest.mark.parametrize("room", sorted(KNOW_NO_MODEL))
def test_rooms_behind_the_files_know_no_model(room: str):
    for path in MODULES:
        if room_of(path) == room:
            assert not imported_rooms(path) & MODEL_ROOMS, path.name


def test_only_the_tensorrt_runtime_knows_engines():
    users = {p.name for p in MODULES if room_of(p) == "runtimes" and "engine" in imported_rooms(p)}
    assert users <= {"tensorrt.py"}


def test_parity_knows_the_reference_and_no_graphs():
    for path in MODULES:
        if room_of(path) == "parity":
            assert not imported_rooms(path) & {"graphs", "checkpoint", "training", "onnx_export"}
            models = {n for n in imported_modules(path) if n.startswith("ckv_export.model.")}
            assert models <= {"ckv_export.model.reference"}, path.name


def test_reference_shares_nothing_with_what_is_exported():
    """It is the truth by which the split modules are judged."""
    for name in ("reference", "reference_hstu"):
        models = set(imported_modules(ROOT / "model" / f"{name}.py"))
        allowed = {"contract", "model.activations", "model.reference"}
        assert models <= {f"ckv_export.{m}" for m in allowed}, name


def test_rooms_behind_the_files_start_without_torch():
    """A server that only reads bundles must not need it, nor wait for it."""
    rooms = "manifest, ckv_export.cache, ckv_export.engine, ckv_export.runtimes.onnxruntime"
    heavy = ("torch", "onnx", "onnxscript", "onnxruntime", "matplotlib", "ckv_export.model")
    program = f"import sys, ckv_export.{rooms}; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


# -- what stands in a module


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_module_is_short_and_says_what_it_is_for(path: Path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert len(text.splitlines()) <= LONGEST_MODULE


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions(body: list[ast.stmt], public: bool = True) -> Iterator[tuple[Definition, bool]]:
    """Functions and classes of a module and their methods, each with whether it is public."""
    for node in body:
        if isinstance(node, Definition):
            shown = public and not node.name.startswith("_")
            yield node, shown
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, shown)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_names_are_documented_and_all_are_annotated(path: Path):
    for node, public in definitions(ast.parse(path.read_text()).body):
        if public:
            assert ast.get_docstring(node), f"{node.name} has no docstring"
        if isinstance(node, ast.ClassDef):
            continue
        assert node.returns is not None, f"{node.name} returns what?"
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named += [a for a in (arguments.vararg, arguments.kwarg) if a]
        bare = {a.arg for a in named if a.annotation is None} - {"self", "cls"}
        assert not bare, f"{node.name} has arguments without a type: {sorted(bare)}"


def test_public_surface_of_the_package():
    assert sorted(getattr(ckv_export, "__all__", [])) == PUBLIC
    for name in PUBLIC:
        assert hasattr(ckv_export, name)
    assert ckv_export.__version__


@pytest.mark.parametrize("name", ["contract", "cache", "engine", "training", "checkpoint"])
def test_rooms_export_what_they_name(name: str):
    room = importlib.import_module(f"ckv_export.{name}")
    names = getattr(room, "__all__", [])
    assert len(set(names)) == len(names)
    for exported in names:
        assert hasattr(room, exported), exported

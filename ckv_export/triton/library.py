"""The part of this package that runs inside a server, to be copied beside the model.

A server's Python needs numpy then, and neither PyTorch nor an installation of this package.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ckv_export

START = "ckv_export.triton.model"
_ROOT = Path(ckv_export.__file__).parent


def library_files(start: str = START) -> dict[str, str]:
    """Sources by path, ``ckv_export/store/base.py`` and so on, of all that `start` imports.

    A package that nobody imports names from is left empty: what its ``__init__`` would import is
    for other uses.
    """
    used: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module not in used:
            used.add(module)
            waiting.extend(_imports(_source(module)))
    files = {_path(module): _source(module).read_text() for module in used}
    for module in used:
        for package in _packages(module):
            files.setdefault(_path(package), '"""Part of a copy: see the package."""\n')
    return dict(sorted(files.items()))


def _imports(source: Path) -> Iterator[str]:
    """Modules and packages of ours whose code an import in `source` needs."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ckv_export"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in names if _exists(name)]
            yield from modules
            if len(modules) < len(names):
                yield str(node.module)


def _packages(module: str) -> Iterator[str]:
    parts = module.split(".")
    yield from (".".join(parts[:n]) for n in range(1, len(parts)))


def _exists(module: str) -> bool:
    return _source(module).is_file()


def _source(module: str) -> Path:
    return _ROOT.parent / _path(module)


def _path(module: str) -> str:
    path = module.replace(".", "/")
    package = (_ROOT.parent / path).is_dir()
    return f"{path}/__init__.py" if package else f"{path}.py"

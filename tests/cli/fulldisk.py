"""Exports onto file systems that are too small, in a mount namespace of its own.

Run by test_full_disk.py under ``unshare -m``, as only there may it mount. Arguments: a JSON object
with ``bundle`` (whose graphs are taken, and which is the bundle that is there before), ``model``,
``at`` (an empty folder) and ``sizes`` (name -> bytes of each file system). Prints a JSON object:
for each name the exit code, both streams, and whether the file system is as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir

from ckv_export.cli.main import main
from ckv_export.deploy import bundle


def listing(folder: Path) -> dict[str, str]:
    return {
        str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in folder.rglob("*")
    }


def attempt(at: Path, size: int, old: Path, words: list[str]) -> dict[str, object]:
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(at)]
    subprocess.run(mount, check=True, capture_output=True)
    if "--force" in words:
        shutil.copytree(old, at / "name")
    before = listing(at)
    streams = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        code = main(words)
    out, err = (stream.getvalue() for stream in streams)
    return {"code": code, "out": out, "err": err, "as before": listing(at) == before}


def run(request: dict) -> dict[str, object]:
    graphs, results = Path(request["bundle"]), {}
    bundle.export_graph = lambda graph: ir.load(graphs / f"{graph.io.name}.onnx")
    for name, size in request["sizes"].items():
        at = Path(request["at"]) / name
        out = at / "made" / "for it" if name.startswith("new") else at
        words = [request["model"], "--out", str(out), "--name", "name"]
        words += ["--force"] if name.startswith("old") else []
        results[name] = attempt(at, size, graphs, words)
    return results


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))

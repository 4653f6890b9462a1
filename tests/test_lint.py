"""Lint, format and types are clean."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

old_types = pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="types are checked as of Python 3.10, and those of numpy 2.5 are of 3.12",
)


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("ruff", ["check", "."]),
        ("ruff", ["format", "--check", "."]),
        pytest.param("mypy", [], marks=[pytest.mark.slow, old_types]),
    ],
)
def test_tools_have_nothing_to_say(package: str, arguments: list[str]):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'ckv-export[dev]'")
    command = [sys.executable, "-m", package, *arguments]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
